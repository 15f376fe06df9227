"""One error style for every command: one line on stderr, no traceback, a meaningful exit status.

0 success, 1 bad input (ValueError, OSError), 2 wrong usage (argparse), 130 Ctrl-C. `--debug` shows the traceback.
"""
import sys
from collections.abc import Callable


def run(main: Callable[[], int | None]) -> None:
    """Call `main` and exit with its status; what the user can mend is reported as one line that starts with "error:"."""
    debug = "--debug" in sys.argv
    if debug:
        sys.argv.remove("--debug")
    try:
        status = main() or 0
    except KeyboardInterrupt:
        print("\nerror: interrupted", file=sys.stderr)
        status = 130
    except (ValueError, OSError) as error:
        if debug:
            raise
        message = " ".join(str(error).split())
        print(f"error: {message}", file=sys.stderr)
        status = 1
    sys.exit(status)

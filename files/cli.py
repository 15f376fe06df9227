"""One error style for every command: one line on stderr, no traceback, a meaningful exit status.

0 success, 1 bad input (ValueError, OSError, too little memory), 2 wrong usage (Parser), 130 Ctrl-C, 143 SIGTERM.
`--debug`, which every command takes, shows the traceback. What is none of these is a bug and keeps its traceback.
Left out: logs and levels of them.
"""
import argparse
import difflib
import re
import signal
import sys
from collections.abc import Callable


class Parser(argparse.ArgumentParser):
    """argparse's, for which a wrong option is one line with a hint; options are not abbreviated, and their help is short."""

    def __init__(self, prog: str, usage: str, description: str):
        super().__init__(prog=prog, usage=f"python {prog} {usage}", description=description, allow_abbrev=False,
                         formatter_class=lambda prog: argparse.HelpFormatter(prog, max_help_position=26),
                         epilog="--debug shows the traceback of an error.")

    def error(self, message: str):
        """End with status 2 and one line: what is wrong, the option that may have been meant, and where all of them stand."""
        unknown = re.match(r"unrecognized arguments:.*? (--[\w-]+)", message)
        known = [name for action in self._actions for name in action.option_strings]
        meant = difflib.get_close_matches(unknown[1], known, 1) if unknown else []
        self.exit(2, f"error: {message}{f'; did you mean {meant[0]}?' if meant else ''} (all options: python {self.prog} "
                     "--help)\n")


class Interrupted(KeyboardInterrupt):
    """A signal ended the command where nothing is half done; the message says what is kept."""

    def __init__(self, signum: int, message: str = "interrupted"):
        super().__init__(message)
        self.signum = signum


def out_of_memory(error: Exception) -> bool:
    """Whether this is Python's, numpy's or torch's way to say that memory ran out; torch has several."""
    return isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and any(
        words in str(error) for words in ("out of memory", "not enough memory", "can't allocate memory", "bad_alloc")))


def run(main: Callable[[], int | None]) -> None:
    """Call `main` and exit with its status; what the user can mend is reported as one line that starts with "error:"."""
    debug = "--debug" in sys.argv
    if debug:
        sys.argv.remove("--debug")
    message, status = "", 0
    try:
        status = main() or 0
    except KeyboardInterrupt as error:
        message, status = f"\nerror: {str(error) or 'interrupted'}", 128 + getattr(error, "signum", signal.SIGINT)
    except (ValueError, OSError) as error:
        if debug:
            raise
        message, status = f"error: {' '.join(str(error).split())}", 1
    except (MemoryError, RuntimeError) as error:
        if debug or not out_of_memory(error):
            raise
        message, status = ("error: " + (str(error).splitlines() or ["out of memory"])[0][:300]
                           + ": lower the batch size or the beam size, or take a smaller model"), 1
    if message:
        print(message, file=sys.stderr)
    sys.exit(status)

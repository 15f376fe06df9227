"""What stands on top of the core: sweeps, tables, benchmarks, the tour. Some of it needs the libraries of requirements-dev.txt:
where one is missing, every experiment ends with a line that says so. Left out: --debug, which shows the traceback.
"""
import sys


def say_what_is_missing(kind: type, error: BaseException, traceback) -> None:
    """sys.excepthook for an import that fails because a library, no file of this project, is not there."""
    library = (error.name or "").partition(".")[0] if kind is ModuleNotFoundError else ""
    if not library or library == __name__:
        sys.__excepthook__(kind, error, traceback)
        return
    print(f"error: the library {library} is missing, which this experiment needs: run make dev, or pip install -r "
          "requirements-dev.txt", file=sys.stderr)


if "--debug" not in sys.argv:
    sys.excepthook = say_what_is_missing

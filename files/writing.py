"""Files that appear under their name only when they are complete, and locks, so that two processes make no file at once.
Left out: locks between machines; a network's file system decides itself whether it keeps these.
"""
import errno
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, BinaryIO


@contextmanager
def written_whole(path: Path, keep: Path | None = None) -> Iterator[BinaryIO]:
    """A file to write to, which takes the name `path` in one step once it is complete and on the disk; what stood there
    is replaced, or moved to `keep`. After an error nothing is left of it. Raises OSError for a full disk."""
    temporary = path.with_name(path.name + ".tmp")
    try:
        with open(temporary, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        if keep is not None and path.exists():
            os.replace(path, keep)
        os.replace(temporary, path)
        fsync_folder(path.parent)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        cause = error.__context__ if isinstance(error, RuntimeError) else error          # torch.save hides it behind its own
        if not isinstance(cause, OSError):
            raise
        raise OSError(f"{path}: {cause.strerror or cause}; what stood there is kept{room_advice(cause)}") from None


def room_advice(error: OSError) -> str:
    """What to do about a file that could not be written, where the disk, or what a user may fill of it, is full."""
    return ": make room and try again" if error.errno in (None, errno.ENOSPC, errno.EDQUOT, errno.EFBIG) else ""


def fsync_folder(folder: Path) -> None:
    """Bring the names in a folder to the disk; Windows does so by itself and opens no folders."""
    if sys.platform != "win32":
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def lock_file(file: IO, wait: bool) -> bool:
    """Lock an open file for this process until it is closed or the process ends; False if another has it and we do not
    wait."""
    try:
        if sys.platform == "win32":
            import msvcrt
            file.seek(1 << 30)                                               # nobody can read a byte that is locked there
            msvcrt.locking(file.fileno(), msvcrt.LK_LOCK if wait else msvcrt.LK_NBLCK, 1)
        else:
            import fcntl
            fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except OSError:
        if wait:
            raise
        return False
    return True


@contextmanager
def hold_lock(path: Path, wait: bool) -> Iterator[IO | None]:
    """The lock file `path`, open and locked for this process, or None if another has it and we do not wait. The system frees
    the lock of a process that dies; the file is removed in the end."""
    while True:
        file = path.open("a+", encoding="utf-8")
        if not lock_file(file, wait):
            with file:
                yield None
            return
        with suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(file.fileno()), path.stat()):
                break
        file.close()                                                         # the one before removed it: try again
    with file:
        try:
            yield file
        finally:
            if sys.platform != "win32":                                      # where an open file cannot be removed
                path.unlink(missing_ok=True)
    if sys.platform == "win32":
        with suppress(OSError):                                              # another has opened it
            path.unlink()


@contextmanager
def folder_made_for(path: Path) -> Iterator[None]:
    """The folder of `path`, made if need be. After an error those that were made and are empty are taken away again."""
    made = [folder for folder in path.parents if not folder.exists()]        # the deepest first
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        yield
    except BaseException:
        with suppress(OSError):                                              # the first that is not empty
            for folder in made:
                folder.rmdir()
        raise


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Let one process at a time produce `path`; the others wait here and find it done. Nothing but `path` is left."""
    with folder_made_for(path), hold_lock(path.with_name(f".{path.name}.lock"), wait=True):
        yield

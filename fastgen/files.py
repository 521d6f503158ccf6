"""Single files: only ordinary ones are read, and what is written is there as a whole or not at all."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import io
import os
import secrets
import stat
import tempfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from .errors import FastgenError, WriteError

try:
    import fcntl
except ImportError:  # not a Unix system: nothing is locked there
    fcntl = None  # type: ignore[assignment]

LONGEST_STEM = 240  # bytes: file systems take 255, of which 14 are a temporary name's own
OPEN_FLAGS = getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0)


def open_ordinary(path: str | Path, error: type[FastgenError]) -> io.BufferedReader:
    """Open an ordinary file to read bytes from. Raises `error` for a folder, a pipe, a device, or what is not there.

    Never waits: a named pipe that nobody writes to would keep a plain ``open`` forever.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | OPEN_FLAGS)
    except (OSError, ValueError) as problem:  # ValueError: a null character in the name
        raise error(f"cannot be read: {_reason(problem)}", argument=path) from problem
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise error("cannot be read: it is no ordinary file", argument=path)
    return os.fdopen(descriptor, "rb")


def read_ordinary(path: str | Path, limit: int, error: type[FastgenError]) -> bytes:
    """The bytes of an ordinary file of at most `limit` bytes. Raises `error`."""
    with open_ordinary(path, error) as file:
        try:
            data = file.read(min(limit, os.fstat(file.fileno()).st_size) + 1)
        except OSError as problem:
            raise error(f"cannot be read: {_reason(problem)}", argument=path) from problem
    if len(data) > limit:
        raise error(f"is longer than {limit} bytes, too long to be what it should be", argument=path)
    return data


@contextlib.contextmanager
def prepared(path: str | Path, data: bytes) -> Iterator[Callable[[], None]]:
    """Write `data` beside `path` and flush it to disk; calling what this yields renames it to `path`, at once.

    Where it is not called, nothing has happened. Raises WriteError where a file cannot be written, and leaves nothing
    behind. Only a kill leaves the temporary file, for :func:`remove_leftovers`.
    """
    path = Path(path)
    temporary = path.with_name(f".{_stem(path.name)}.{secrets.token_hex(4)}.tmp")

    def replace() -> None:
        os.replace(temporary, path)
        _sync_folder(path.parent)

    try:
        handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | OPEN_FLAGS, 0o666)
        try:
            with os.fdopen(handle, "wb") as file:
                _lock(file.fileno())  # tells others that its writer is alive
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
                yield replace
        finally:
            with contextlib.suppress(OSError):  # it is renamed already, or the folder is gone
                os.unlink(temporary)
    except WriteError:
        raise  # of another file, written meanwhile
    except OSError as problem:
        raise _write_error(path, problem) from problem


def write_atomic(path: str | Path, data: bytes) -> None:
    """Replace `path` by `data`: it holds the old content or the new. Raises WriteError, and leaves nothing behind."""
    with prepared(path, data) as replace:
        replace()


def write_at(path: str | Path, offset: int, data: bytes | memoryview) -> None:
    """Let the file `path`, which is there, end with `data` from `offset` on, flushed to disk. Raises WriteError.

    What lies before stays as it is, also where that fails.
    """
    _write_into(Path(path), os.O_WRONLY, lambda file: (file.seek(offset), file.truncate(), file.write(data)))


def write_whole(path: str | Path, fill: Callable[[io.BufferedWriter], object]) -> None:
    """Have `fill` write a new file `path`, in place of one that is there, flushed to disk. Raises WriteError."""
    _write_into(Path(path), os.O_RDWR | os.O_CREAT | os.O_TRUNC, fill)


def _write_into(path: Path, flags: int, fill: Callable[[io.BufferedWriter], object]) -> None:
    try:
        with os.fdopen(os.open(path, flags | OPEN_FLAGS, 0o666), "wb") as file:
            fill(file)
            file.flush()
            os.fsync(file.fileno())
    except OSError as problem:
        raise _write_error(path, problem) from problem


def replace_by(path: str | Path, new: str | Path) -> None:
    """Give the file `new`, which is on disk, the name `path`, at once. Raises WriteError."""
    try:
        os.replace(new, path)
    except OSError as problem:
        raise _write_error(Path(path), problem) from problem
    _sync_folder(Path(path).parent)


def remove(path: str | Path) -> None:
    """Remove a file, if it is there. Raises WriteError."""
    try:
        Path(path).unlink(missing_ok=True)
    except OSError as problem:
        raise _write_error(Path(path), problem) from problem
    _sync_folder(Path(path).parent)


def make_folder(path: str | Path, *, parents: bool = False) -> None:
    """Make a folder unless it is there. Raises WriteError."""
    try:
        Path(path).mkdir(parents=parents, exist_ok=True)
    except OSError as problem:
        raise _write_error(Path(path), problem) from problem


@contextlib.contextmanager
def held(folder: str | Path) -> Iterator[bool]:
    """Hold a folder for oneself; yields False where another process holds it. Nothing is left behind, not by a kill.

    It is True, too, where the file system knows no locks.
    """
    descriptor = None
    with contextlib.suppress(OSError):  # the right to write into a folder may come without that to read it
        descriptor = os.open(folder, os.O_RDONLY | OPEN_FLAGS)
    try:
        yield descriptor is None or _lock(descriptor) is not False
    finally:
        if descriptor is not None:
            os.close(descriptor)


def exists(path: str | Path) -> bool:
    """Whether something is there, or may be: what cannot be looked at is for its reader to report."""
    try:
        os.stat(path)
    except (FileNotFoundError, NotADirectoryError, ValueError):  # ValueError: a null character
        return False
    except OSError:
        return True
    return True


def check_writable(folder: str | Path) -> None:
    """Before work is done that would be lost: whether a file can be made in `folder`. Raises WriteError."""
    try:
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as problem:
        raise _write_error(Path(folder), problem) from problem


def remove_leftovers(folder: Path, names: Iterable[str]) -> None:
    """Remove what killed writers of `names` left in `folder`; the temporary file of a living writer is locked."""
    wanted = set(map(_stem, names))  # of .NAME.XXXXXXXX.tmp, as write_atomic calls it
    for path in _temporaries(folder):
        if path.name[1:].rsplit(".", 2)[0] not in wanted:
            continue
        with contextlib.suppress(OSError), path.open("rb") as file:
            if _lock(file.fileno()):  # without locks it is unknown whether its writer is alive
                path.unlink()


def _stem(name: str) -> str:
    """`name`, or its beginning and a hash where a temporary file's longer name would be too long for a folder."""
    encoded = os.fsencode(name)
    if len(encoded) <= LONGEST_STEM:
        return name
    return encoded[: LONGEST_STEM - 16].decode("utf-8", "ignore") + hashlib.sha256(encoded).hexdigest()[:16]


def _temporaries(folder: Path) -> Iterator[Path]:
    with contextlib.suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            if (
                entry.name.startswith(".")
                and entry.name.endswith(".tmp")
                and entry.is_file(follow_symlinks=False)
            ):
                yield Path(entry.path)


def _sync_folder(folder: Path) -> None:
    """Flush a folder's names to disk: a new name, too, must survive a power cut.

    Where a folder cannot be opened or flushed, that is no error: the file has its new name already.
    """
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _lock(descriptor: int) -> bool | None:
    """Lock an open file until it is closed: False where another has locked it, None where there are no locks."""
    if fcntl is None:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as problem:  # network file systems may know no locks
        return False if problem.errno in (errno.EWOULDBLOCK, errno.EACCES) else None
    return True


def _reason(problem: BaseException) -> str:
    return (problem.strerror if isinstance(problem, OSError) else None) or str(problem)


def _write_error(path: Path, problem: OSError) -> WriteError:
    error = WriteError(
        f"cannot be written: {_reason(problem)}; what was there before is unchanged. "
        "Make room, or choose a place where you may write",
        argument=path,
    )
    error.errno = problem.errno
    return error

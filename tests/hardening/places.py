"""Folders that cannot be written to, for child processes: a full disk, a read-only one, somebody else's.

A mount needs root or a user namespace of one's own. Where neither is to be had, the process itself is held back: it may
write no file beyond a size (a disk that fills up), or gives up its rights.
"""

from __future__ import annotations

import ctypes
import os
import resource
from collections.abc import Callable
from pathlib import Path

CLONE_NEWNS, CLONE_NEWUSER = 0x20000, 0x10000000
MS_RDONLY, MS_REMOUNT, MS_BIND, MS_REC, MS_PRIVATE = 1, 32, 4096, 16384, 1 << 18
NOBODY = 65534

_libc = ctypes.CDLL(None, use_errno=True)


def full(folder: Path, room: int) -> str:
    """Empty `folder` for this process and leave `room` bytes in it: "tmpfs", or "limit" where no mount is allowed.

    A "limit" is on each file: of at most `room` bytes.
    """

    def mount() -> bool:
        options = f"size={room},mode=0777".encode()
        return _own_mounts() and _libc.mount(b"none", str(folder).encode(), b"tmpfs", 0, options) == 0

    if _tried(mount):
        return "tmpfs"
    limit(room)
    return "limit"


def limit(room: int) -> None:
    """Let this process write no file of more than `room` bytes: EFBIG instead of ENOSPC (Python ignores the signal)."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, room))


def read_only(folder: Path) -> str:
    """Take away the right to write in `folder`, keeping what is in it: "mount", or "mode" where no mount is allowed."""

    def mount() -> bool:
        name = str(folder).encode()
        return (
            _own_mounts()
            and _libc.mount(name, name, None, MS_BIND, None) == 0
            and _libc.mount(b"none", name, None, MS_REMOUNT | MS_BIND | MS_RDONLY, None) == 0
        )

    if _tried(mount):
        return "mount"
    folder.chmod(0o555)
    if os.geteuid() == 0:  # to whom modes mean nothing
        os.setgid(NOBODY)
        os.setuid(NOBODY)
    return "mode"


def _tried(mount: Callable[[], bool]) -> bool:
    """`mount`, where it works in a throwaway process: half of it would leave this one without rights of any kind."""
    process = os.fork()
    if process == 0:
        works = False
        try:
            works = mount()
        finally:
            os._exit(0 if works else 1)
    if os.waitpid(process, 0)[1] != 0:
        return False
    assert mount()
    return True


def _own_mounts() -> bool:
    if _libc.unshare(CLONE_NEWNS) != 0:
        uid, gid = os.getuid(), os.getgid()
        if _libc.unshare(CLONE_NEWUSER | CLONE_NEWNS) != 0:
            return False
        Path("/proc/self/setgroups").write_text("deny")
        Path("/proc/self/uid_map").write_text(f"0 {uid} 1")
        Path("/proc/self/gid_map").write_text(f"0 {gid} 1")
    return _libc.mount(b"none", b"/", None, MS_REC | MS_PRIVATE, None) == 0  # nothing of it is seen outside

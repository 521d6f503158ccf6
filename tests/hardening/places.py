"""Folders that cannot be written to, for child processes: a full disk, a read-only one, somebody else's.

A mount needs root or a user namespace of one's own. Where neither is to be had, the process itself is held back: it may
write no file beyond a size (a disk that fills up), or gives up its rights.
"""

from __future__ import annotations

import ctypes
import os
import resource
from pathlib import Path

CLONE_NEWNS, CLONE_NEWUSER = 0x20000, 0x10000000
MS_RDONLY, MS_REMOUNT, MS_REC, MS_PRIVATE = 1, 32, 16384, 1 << 18
NOBODY = 65534

_libc = ctypes.CDLL(None, use_errno=True)


def full(folder: Path, room: int) -> str:
    """Empty `folder` for this process and leave `room` bytes in it: "tmpfs", or "limit" where no mount is allowed.

    A "limit" is on each file: of at most `room` bytes.
    """
    if _mount(folder, room):
        return "tmpfs"
    limit(room)
    return "limit"


def limit(room: int) -> None:
    """Let this process write no file of more than `room` bytes: EFBIG instead of ENOSPC (Python ignores the signal)."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, room))


def read_only(folder: Path) -> str:
    """Take away the right to write in `folder`, keeping what is in it: "mount", or "mode" where no mount is allowed."""
    if (
        _own_mounts() and _libc.mount(str(folder).encode(), str(folder).encode(), None, 4096, None) == 0
    ):  # MS_BIND
        flags = MS_REMOUNT | 4096 | MS_RDONLY
        if _libc.mount(b"none", str(folder).encode(), None, flags, None) == 0:
            return "mount"
    folder.chmod(0o555)
    if os.geteuid() == 0:  # to whom modes mean nothing
        os.setgid(NOBODY)
        os.setuid(NOBODY)
    return "mode"


def _own_mounts() -> bool:
    if _libc.unshare(CLONE_NEWNS) != 0:
        uid, gid = os.getuid(), os.getgid()
        if _libc.unshare(CLONE_NEWUSER | CLONE_NEWNS) != 0:
            return False
        Path("/proc/self/setgroups").write_text("deny")
        Path("/proc/self/uid_map").write_text(f"0 {uid} 1")
        Path("/proc/self/gid_map").write_text(f"0 {gid} 1")
    return _libc.mount(b"none", b"/", None, MS_REC | MS_PRIVATE, None) == 0  # nothing of it is seen outside


def _mount(folder: Path, room: int) -> bool:
    options = f"size={room},mode=0777".encode()
    return _own_mounts() and _libc.mount(b"none", str(folder).encode(), b"tmpfs", 0, options) == 0

"""
What the kernel knows of projects, read and changed by other means than the backend's.
"""

from __future__ import annotations

import atexit
import fcntl
import os
import re
import struct
import subprocess
from contextlib import ExitStack
from functools import cache
from pathlib import Path
from typing import NamedTuple

from tests.engines import xfs

# struct fsxattr and its two ioctls, <linux/fs.h>.
_FSXATTR = struct.Struct("=IIIII8s")
_FSGETXATTR, _FSSETXATTR = 0x801C581F, 0x401C5820
_INHERIT = 0x200

#: Of blocks and of inodes: used, soft limit, hard limit, warnings, time left.
_ROW = re.compile(r"#(\d+)\s+(\d+)\s+\d+\s+(\d+)\s+\d+\s+\[.*?\]\s+(\d+)\s+\d+\s+(\d+)\s+\d+\s+\[")


class Project(NamedTuple):
    """What an inode says of its project: the id, and whether what is made in it inherits it."""

    id: int
    inherits: bool


class Charge(NamedTuple):
    """What a project holds and may hold, in bytes and inodes; 0 is no limit."""

    size: int
    limit: int
    inodes: int
    inodes_limit: int


@cache
def mount() -> Path:
    """
    XFS with project quotas, mounted when it is first asked for.
    """
    os.makedirs("/run/xfs")
    mounts = ExitStack()
    atexit.register(mounts.close)
    return Path(mounts.enter_context(xfs.mounted("/run/xfs", "pquota", size=4 << 30)))


def project(path: Path | int) -> Project:
    """The project of a file or directory."""
    flags, _, _, found, *_ = _attributes(path)
    return Project(found, bool(flags & _INHERIT))


def set_project(path: Path, number: int, inherits: bool = True) -> None:
    """Change the project of a file or directory; whoever owns it may do so."""
    flags, *between, _, cow, rest = _attributes(path)
    flags = flags | _INHERIT if inherits else flags & ~_INHERIT
    descriptor = os.open(path, os.O_RDONLY)
    try:
        packed = _FSXATTR.pack(flags, *between, number, cow, rest)
        fcntl.ioctl(descriptor, _FSSETXATTR, packed)
    finally:
        os.close(descriptor)


def _attributes(path: Path | int) -> tuple[int, int, int, int, int, bytes]:
    descriptor = os.dup(path) if isinstance(path, int) else os.open(path, os.O_RDONLY)
    try:
        return _FSXATTR.unpack(fcntl.ioctl(descriptor, _FSGETXATTR, bytes(_FSXATTR.size)))
    finally:
        os.close(descriptor)


def set_limit(number: int, size: int, inodes: int = 0) -> None:
    """Limit a project to so many bytes and inodes, 0 for no limit."""
    quota(f"limit -p bhard={size} ihard={inodes} {number}")


def charges() -> dict[int, Charge]:
    """What each project holds and may hold, of those that hold anything or have a limit."""
    os.sync()
    found = {}
    for line in quota("report -p -n -N -b -i").splitlines():
        if row := _ROW.match(line):
            number, size, limit, inodes, inodes_limit = map(int, row.groups())
            found[number] = Charge(1024 * size, 1024 * limit, inodes, inodes_limit)
    return found


def quota(command: str, top: Path | None = None) -> str:
    """What xfs_quota(8) says to a command, on the volume of the machine."""
    return subprocess.run(
        ["xfs_quota", "-x", "-D", "/dev/null", "-P", "/dev/null", "-c", command, top or mount()],
        check=True,
        capture_output=True,
        text=True,
    ).stdout

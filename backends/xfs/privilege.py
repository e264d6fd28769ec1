# -*- test-case-name: tests.test_xfs_privilege -*-
"""
The capabilities of this process, capabilities(7): which it has, and that it keeps no others.
"""

from __future__ import annotations

import ctypes
import os
import re
from collections.abc import Iterable
from enum import IntEnum
from pathlib import Path


class Capability(IntEnum):
    """Those that matter here, with their numbers in ``linux/capability.h``."""

    #: To read files and directories that are closed to others.
    CAP_DAC_READ_SEARCH = 2
    #: To change the project of what belongs to others.
    CAP_FOWNER = 3
    #: To read and set limits.
    CAP_SYS_ADMIN = 21


#: What the agent cannot do without.
NEEDED = frozenset({Capability.CAP_FOWNER, Capability.CAP_SYS_ADMIN})

_PR_CAPBSET_READ, _PR_CAPBSET_DROP = 23, 24
_VERSION_3 = 0x20080522

_libc = ctypes.CDLL(None, use_errno=True)


class _Header(ctypes.Structure):
    _fields_ = [("version", ctypes.c_uint32), ("pid", ctypes.c_int)]


class _Data(ctypes.Structure):
    _fields_ = [
        ("effective", ctypes.c_uint32),
        ("permitted", ctypes.c_uint32),
        ("inheritable", ctypes.c_uint32),
    ]


def missing(status: str | None = None) -> list[str]:
    """
    Say what this process lacks of :data:`NEEDED`.

    :param status: the text of ``/proc/self/status``.
    """
    text = Path("/proc/thread-self/status").read_text() if status is None else status
    found = re.search(r"^CapEff:\s*([0-9a-f]+)$", text, re.MULTILINE)
    effective = int(found[1], 16) if found else 0
    return sorted(one.name for one in NEEDED if not effective >> one & 1)


def keep(wanted: Iterable[Capability]) -> None:
    """
    Give up all other capabilities, also for the commands that are run.

    It is for the thread that calls it, and for those that it starts later: to be done before there
    are any others.

    :raises OSError: when the kernel refuses.
    """
    kept = frozenset(wanted)
    number = 0
    # Beyond the last one that the kernel knows it says EINVAL.
    while (is_there := _bounding(_PR_CAPBSET_READ, number)) >= 0:
        if is_there and number not in kept:
            # It takes CAP_SETPCAP; who lacks that was started with what he is to have.
            _bounding(_PR_CAPBSET_DROP, number)
        number += 1
    header = _Header(_VERSION_3, 0)
    sets = (_Data * 2)()
    _call(_libc.capget(ctypes.byref(header), sets))
    for index, data in enumerate(sets):
        mask = sum(1 << one - 32 * index for one in kept if one // 32 == index)
        data.effective = data.permitted = data.permitted & mask
        data.inheritable &= mask
    _call(_libc.capset(ctypes.byref(header), sets))


def _bounding(operation: int, number: int) -> int:
    found: int = _libc.prctl(operation, *map(ctypes.c_ulong, (number, 0, 0, 0)))
    return found


def _call(result: int) -> None:
    if result:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))

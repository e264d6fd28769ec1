"""
What the kernel has in memory of an open file, so that the reactor's thread reads only that.
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import os

#: cachestat(2), since Linux 6.5; the number of the call is the same on all architectures.
_SYS_CACHESTAT = 451
#: Without it, how many bytes lie between two looks.
_SAMPLE = 64 * 1024


class _Range(ctypes.Structure):
    _fields_ = [("offset", ctypes.c_uint64), ("length", ctypes.c_uint64)]


class _Cachestat(ctypes.Structure):
    _fields_ = [
        (name, ctypes.c_uint64)
        for name in ("cached", "dirty", "writeback", "evicted", "recently_evicted")
    ]


_syscall = ctypes.CDLL(None, use_errno=True).syscall


def is_cached(descriptor: int, offset: int, size: int) -> bool:
    """
    Whether bytes of a file can be read without waiting.

    False where a file system cannot tell, as those on a network do. On kernels without cachestat(2)
    some bytes of each 64 KiB speak for the others.

    :param size: more than 0.
    """
    last = offset + size - 1
    if not _is_ready(descriptor, last):
        # Not there, or on its way.
        return False
    pages = last // mmap.PAGESIZE - offset // mmap.PAGESIZE + 1
    found = _cached_pages(descriptor, offset, size)
    if found is not None:
        return found == pages
    return all(_is_ready(descriptor, at) for at in range(offset, last, _SAMPLE))


def read_cached(descriptor: int, offset: int, size: int) -> bytes | None:
    """
    Read bytes of a file, if that takes no waiting (preadv2(2) with ``RWF_NOWAIT``).

    :return: all of them, or None.
    """
    buffer = bytearray(size)
    try:
        found = os.preadv(descriptor, [buffer], offset, os.RWF_NOWAIT)
    except OSError as error:
        if error.errno in (errno.EAGAIN, errno.EOPNOTSUPP):
            return None
        raise
    return bytes(buffer) if found == size else None


def _is_ready(descriptor: int, offset: int) -> bool:
    return read_cached(descriptor, offset, 1) is not None


def _cached_pages(descriptor: int, offset: int, size: int) -> int | None:
    """Pages of a range that are in memory, None where the kernel cannot count them."""
    wanted, counted = _Range(offset, size), _Cachestat()
    failed = _syscall(
        ctypes.c_long(_SYS_CACHESTAT),
        ctypes.c_int(descriptor),
        ctypes.byref(wanted),
        ctypes.byref(counted),
        ctypes.c_uint(0),
    )
    return None if failed else counted.cached

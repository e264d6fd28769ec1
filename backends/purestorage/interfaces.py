"""
What a volume wants of its array.
"""

from __future__ import annotations

from collections.abc import Coroutine
from typing import Any

from zope.interface import Interface


class IArray(Interface):
    """
    One file system of an array.

    All raise a :class:`storageproxy.errors.StorageProxyError` that names the volume, the array and
    what it said.
    """

    def look() -> Coroutine[Any, Any, None]:
        """Find out whether the array can be asked, and has the file system."""

    def health() -> Coroutine[Any, Any, dict[str, Any]]:
        """
        :return: as :meth:`storageproxy.interfaces.IVolume.hardware_info`, with the name, id and
            version of the array, all of it text.
        """

    def usage() -> Coroutine[Any, Any, tuple[int, int]]:
        """
        :return: bytes of the file system, and those that are used. One without a size has what it
            uses, and what is free on the array.
        """

    def metric() -> Coroutine[Any, Any, dict[str, Any]]:
        """
        :return: as :meth:`storageproxy.interfaces.IPerformanceMetric.performance_metric`, of NFS
            alone.
        """

    def limit() -> Coroutine[Any, Any, int]:
        """
        :return: bytes that may be written to the file system, 0 for any number. A size that does
            not limit it (``hard_limit_enabled``) is none.
        """

    def set_limit(size: int) -> Coroutine[Any, Any, None]:
        """
        :param size: bytes, which may be less than what is used; 0 for any number.
        :raises storageproxy.errors.InvalidParameters: when the array takes no such limit.
        """

    def stop() -> Coroutine[Any, Any, None]:
        """Take leave of the array."""

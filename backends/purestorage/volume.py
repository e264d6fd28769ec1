# -*- test-case-name: tests.test_purestorage_volume -*-
"""
A volume on a FlashBlade: files by its NFS mount and commands for that, the rest by its array.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from twisted.logger import Logger
from zope.interface import implementer

from backends.purestorage.interfaces import IArray
from backends.purestorage.rapid import RapidFileVolume
from storageproxy.durability import Durability
from storageproxy.errors import InvalidParameters, StorageProxyError
from storageproxy.interfaces import IPerformanceMetric, IThreads, IVolumeQuota
from storageproxy.schema import ENDLESS


@implementer(IPerformanceMetric, IVolumeQuota)
class PureStorageVolume(RapidFileVolume):
    """
    A tree of vfolders on an NFS mount.

    Nothing that is done with files waits for the array's REST API.

    :param reactor: where commands are run.
    :param environ: of the daemon, with the path on which they are looked for.
    :param array: an :class:`~backends.purestorage.interfaces.IArray`.
    """

    backend = "purestorage"

    def __init__(
        self,
        name: str,
        path: str,
        fsprefix: str,
        threads: IThreads,
        reactor: Any,
        array: IArray,
        durability: Durability = Durability.PATCH,
        environ: Mapping[str, str] = os.environ,
    ) -> None:
        super().__init__(name, path, fsprefix, threads, reactor, durability, environ)
        self._array = array
        self._log = Logger("storageproxy.purestorage")

    async def check(self) -> None:
        """See :meth:`storageproxy.interfaces.IVolume.check`."""
        await super().check()
        try:
            await self._array.look()
        except StorageProxyError as error:
            self._log.warn(
                "{error}. Files are served; the state, size and quota of the volume cannot be told"
                " until this is put right. It is tried again with each request for them.",
                error=error.message,
            )

    async def fs_usage(self) -> tuple[int, int]:
        """See :meth:`storageproxy.interfaces.IVolume.fs_usage`."""
        return await self._array.usage()

    async def hardware_info(self) -> dict[str, Any]:
        """See :meth:`storageproxy.interfaces.IVolume.hardware_info`."""
        try:
            return await self._array.health()
        except StorageProxyError as error:
            return {"status": "unavailable", "status_info": error.message, "metadata": {}}

    async def performance_metric(self) -> dict[str, Any]:
        """See :meth:`storageproxy.interfaces.IPerformanceMetric.performance_metric`."""
        return await self._array.metric()

    async def get_volume_quota(self) -> int:
        """See :meth:`storageproxy.interfaces.IVolumeQuota.get_volume_quota`."""
        return await self._array.limit()

    async def set_volume_quota(self, size: int) -> None:
        """See :meth:`storageproxy.interfaces.IVolumeQuota.set_volume_quota`."""
        if not 0 <= size <= ENDLESS:
            raise InvalidParameters.of({"size_bytes": f"from 0 (no limit) to {ENDLESS} bytes"})
        await self._array.set_limit(0 if size == ENDLESS else size)

    async def stop(self) -> None:
        """See :meth:`storageproxy.interfaces.IVolume.stop`."""
        try:
            await self._array.stop()
        finally:
            await super().stop()

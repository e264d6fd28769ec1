# -*- test-case-name: tests.test_purestorage_array -*-
"""
What is asked of an array: who it is, how it is, and about one of its file systems.

Sources: the models of the vendor's clients, and recordings of arrays in the vendor's exporter
(``pure-fb-openmetrics-exporter``).
"""

from __future__ import annotations

from typing import Any, NewType, TypeVar

from attrs import frozen
from zope.interface import implementer

from backends.purestorage.client import ArrayError, RESTClient
from backends.purestorage.interfaces import IArray
from storageproxy.errors import BackendFailure, InvalidParameters
from storageproxy.schema import ENDLESS, Complaint, Flag, number, register, structure, whole_number

T = TypeVar("T")

#: A number of bytes, and what there is of something on average, as far as they make sense.
_Bytes = NewType("_Bytes", int)
_Rate = NewType("_Rate", float)

#: What a blade may be without being ill.
_WELL = frozenset({"healthy", "unused"})

_BAD_REQUEST = 400


def _bytes(value: object) -> int:
    return int(_sensible(whole_number(value)))


def _rate(value: object) -> float:
    return _sensible(number(value))


def _sensible(value: float) -> float:
    if not 0 <= value <= ENDLESS:
        raise ValueError("value is out of all bounds")
    return value


register(_Bytes, _bytes)
register(_Rate, _rate)


@frozen
class _Identity:
    id: str
    name: str
    os: str | None = None
    revision: str | None = None
    version: str | None = None


@frozen
class _Blade:
    name: str
    status: str


@frozen
class _Space:
    """
    :param virtual: bytes as those who write them count.
    :param total_physical: bytes on flash, which are fewer, as they are compressed.
    """

    virtual: _Bytes | None = None
    total_physical: _Bytes | None = None


@frozen
class _FileSystem:
    """
    :param provisioned: its size in bytes; 0 (1.x) or None (2.x) for none.
    :param hard_limit_enabled: whether that limits what can be written.
    """

    provisioned: _Bytes | None = None
    hard_limit_enabled: Flag = Flag(False)
    destroyed: Flag = Flag(False)
    space: _Space = _Space()


@frozen
class _ArraySpace:
    capacity: _Bytes
    space: _Space


@frozen
class _Performance:
    """What the array has measured in half a minute. Times are in microseconds."""

    reads_per_sec: _Rate | None = None
    writes_per_sec: _Rate | None = None
    read_bytes_per_sec: _Rate | None = None
    write_bytes_per_sec: _Rate | None = None
    usec_per_read_op: _Rate | None = None
    usec_per_write_op: _Rate | None = None


@implementer(IArray)
class Array:
    """
    One file system of an array, by REST.

    :param rest: the :class:`~backends.purestorage.client.RESTClient`.
    :param volume: the name of the volume.
    :param file_system: the name of the file system.
    """

    def __init__(self, rest: RESTClient, volume: str, file_system: str) -> None:
        self._rest = rest
        self._volume = volume
        self._name = file_system

    async def look(self) -> None:
        """See :meth:`backends.purestorage.interfaces.IArray.look`."""
        await self._file_system()

    async def health(self) -> dict[str, Any]:
        """See :meth:`backends.purestorage.interfaces.IArray.health`."""
        array = self._one("arrays", await self._rest.items("arrays"), _Identity)
        blades = [
            self._understood("blades", blade, _Blade) for blade in await self._rest.items("blades")
        ]
        ill = [f"{blade.name} ({blade.status})" for blade in blades if blade.status not in _WELL]
        return {
            "status": "degraded" if ill else "healthy",
            "status_info": f"blades that are not healthy: {', '.join(ill)}" if ill else None,
            "metadata": {
                "id": array.id,
                "name": array.name,
                "os": array.os or "",
                "revision": array.revision or "",
                "version": array.version or "",
                "blade_count": str(len(blades)),
                "console_url": self._rest.endpoint,
            },
        }

    async def usage(self) -> tuple[int, int]:
        """See :meth:`backends.purestorage.interfaces.IArray.usage`."""
        file_system = await self._file_system()
        used = file_system.space.virtual or 0
        if file_system.provisioned:
            return file_system.provisioned, used
        path = "arrays/space"
        array = self._one(path, await self._rest.items(path), _ArraySpace)
        return used + max(0, array.capacity - (array.space.total_physical or 0)), used

    async def metric(self) -> dict[str, Any]:
        """See :meth:`backends.purestorage.interfaces.IArray.metric`."""
        path = "file-systems/performance"
        items = await self._rest.items(path, names=self._name, protocol="NFS")
        found = self._one(path, items, _Performance)
        return {
            "iops_read": round(found.reads_per_sec or 0),
            "iops_write": round(found.writes_per_sec or 0),
            "io_bytes_read": round(found.read_bytes_per_sec or 0),
            "io_bytes_write": round(found.write_bytes_per_sec or 0),
            "io_usec_read": round(found.usec_per_read_op or 0),
            "io_usec_write": round(found.usec_per_write_op or 0),
        }

    async def limit(self) -> int:
        """See :meth:`backends.purestorage.interfaces.IArray.limit`."""
        found = await self._file_system()
        return (found.provisioned or 0) if found.hard_limit_enabled else 0

    async def set_limit(self, size: int) -> None:
        """See :meth:`backends.purestorage.interfaces.IArray.set_limit`."""
        dialect = await self._rest.dialect()
        # The array minds a limit below what is used, unless it is told not to.
        which = {dialect.name: self._name, "ignore_usage": "true"}
        values = {
            "provisioned": size or dialect.unlimited,
            "hard_limit_enabled": size > 0,
        }
        try:
            await self._rest.change("file-systems", which, values)
        except ArrayError as error:
            if error.code == _BAD_REQUEST:
                raise InvalidParameters.of({"size_bytes": error.message}) from None
            raise

    async def stop(self) -> None:
        """See :meth:`backends.purestorage.interfaces.IArray.stop`."""
        await self._rest.stop()

    async def _file_system(self) -> _FileSystem:
        try:
            items = await self._rest.items("file-systems", names=self._name)
        except ArrayError as error:
            if error.code == _BAD_REQUEST:
                raise self._missing(error.message) from None
            raise
        if not items:
            raise self._missing(f"volume {self._volume}: it is not on the array")
        found = self._one("file-systems", items, _FileSystem)
        if found.destroyed:
            raise self._missing(f"volume {self._volume}: it is destroyed, and can be recovered")
        return found

    def _missing(self, why: str) -> BackendFailure:
        return BackendFailure(f"{why} (purity_fs_name is {self._name})")

    def _one(self, path: str, items: list[Any], cls: type[T]) -> T:
        if len(items) != 1:
            raise BackendFailure(
                f"volume {self._volume}: the array has {len(items)} answers to GET {path}, not one"
            )
        return self._understood(path, items[0], cls)

    def _understood(self, path: str, item: object, cls: type[T]) -> T:
        try:
            return structure(item, cls)
        except Complaint as error:
            raise BackendFailure(
                f"volume {self._volume}: its array's GET {path} is not understood: {error}"
            ) from None

"""
The volumes of this daemon, by name.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from attrs import frozen

from storageproxy import config
from storageproxy.errors import UnknownVolume
from storageproxy.interfaces import IVolume


@frozen
class Volumes:
    """
    :param by_name: name to :class:`storageproxy.interfaces.IVolume`.
    """

    by_name: Mapping[str, IVolume]

    @classmethod
    def build(cls, settings: Mapping[str, config.VolumeSettings], reactor: Any) -> Volumes:
        """
        Make all volumes of a configuration, once. Nothing is done on their mounts yet.
        """
        backends = config.backends()
        return cls(
            {
                name: backends[volume.backend].volume(name, volume, reactor)
                for name, volume in settings.items()
            }
        )

    def get(self, name: str) -> IVolume:
        """
        :raises UnknownVolume: when there is none of this name.
        """
        try:
            return self.by_name[name]
        except KeyError:
            raise UnknownVolume(f"Unknown volume: {name}") from None

    def __iter__(self) -> Iterator[IVolume]:
        return iter(self.by_name.values())

"""
How a storage system is announced to ``twistd``, without loading it.

Twisted loads every module in ``twisted.plugins`` whenever anybody looks for any plugin.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from attrs import frozen
from twisted.plugin import IPlugin
from twisted.python.reflect import namedAny
from zope.interface import implementer

from storageproxy.interfaces import IBackend

if TYPE_CHECKING:
    from storageproxy.config import VolumeSettings
    from storageproxy.interfaces import IVolume


@implementer(IPlugin, IBackend)
@frozen
class Backend:
    """
    A storage system whose module is loaded when a volume of it is configured.

    :param name: what ``backend = …`` says in the configuration.
    :param factory: the dotted name of an :class:`IBackend` without arguments.
    """

    name: str
    factory: str

    def check(self, name: str, settings: VolumeSettings) -> list[str]:
        """See :meth:`storageproxy.interfaces.IBackend.check`."""
        return self._load().check(name, settings)

    def volume(self, name: str, settings: VolumeSettings, reactor: Any) -> IVolume:
        """See :meth:`storageproxy.interfaces.IBackend.volume`."""
        return self._load().volume(name, settings, reactor)

    def _load(self) -> IBackend:
        backend: IBackend = namedAny(self.factory)()
        return backend

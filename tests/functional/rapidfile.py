"""
``backend = "rapidfile"``, for the tests of :mod:`tests.functional.test_rapidfile`.
"""

from __future__ import annotations

from typing import Any

from zope.interface import implementer

from backends import vfs
from backends.purestorage.rapid import RapidFileVolume
from storageproxy.config import VolumeSettings
from storageproxy.interfaces import IBackend
from storageproxy.schema import structure


@implementer(IBackend)
class RapidFileBackend:
    """A mounted file system, and commands for it."""

    name = "rapidfile"

    def check(self, name: str, settings: VolumeSettings) -> list[str]:
        """See :meth:`storageproxy.interfaces.IBackend.check`."""
        return vfs.check_options(settings, vfs.Options)

    def volume(self, name: str, settings: VolumeSettings, reactor: Any) -> RapidFileVolume:
        """See :meth:`storageproxy.interfaces.IBackend.volume`."""
        options = structure(settings.options, vfs.Options)
        threads = options.make_threads(name, reactor)
        return RapidFileVolume(
            name, settings.path, settings.fsprefix, threads, reactor, options.durability
        )

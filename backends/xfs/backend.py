# -*- test-case-name: tests.test_xfs_backend -*-
"""
``backend = "xfs"``: its options, and where limits are set.
"""

from __future__ import annotations

import os
import shutil
import socket
from functools import partial
from typing import Any

from attrs import define
from zope.interface import implementer

from backends import vfs
from backends.xfs.interfaces import IProjects
from backends.xfs.kernel import Kernel
from backends.xfs.projects import IDS, Projects
from backends.xfs.registry import Registry
from backends.xfs.remote import RemoteProjects
from backends.xfs.settings import RANGE, RECONCILE_INTERVAL, is_range, to_range
from backends.xfs.volume import XFSVolume
from storageproxy.config import VolumeSettings, register_tables
from storageproxy.errors import BackendFailure, VolumeUnavailable
from storageproxy.interfaces import IBackend, IThreads
from storageproxy.schema import Duration, structure

#: What ``agent`` says when limits are set by the daemon itself.
EMBEDDED = "embedded"

#: Where the tools of administrators are, which may not be on the path of a service.
_PATH = f"{os.environ.get('PATH') or os.defpath}:/usr/sbin:/sbin"


@define(frozen=True)
class Options(vfs.Options):
    """
    ``[volume.NAME.options]``: those of the plain backend, and what limits are set with.

    :param agent: the path of the agent's socket, or ``embedded``: by this process, which has to be
        root, and does as the agent would by the other options.
    :param ids: the first and the last project id that may be given out.
    :param projects: the registry of directories, when it is not ``/etc/projects``.
    :param projid: the registry of names, when it is not ``/etc/projid``.
    :param reconcile_interval: seconds between two rounds of reconciling, when it is not a day; 0
        for none.
    """

    agent: str = EMBEDDED
    ids: list[int] | None = None
    projects: str | None = None
    projid: str | None = None
    reconcile_interval: Duration | None = None

    @property
    def reconciling(self) -> float:
        """Seconds between two rounds that this process makes; the agent makes those of its own."""
        if self.agent != EMBEDDED:
            return 0.0
        return RECONCILE_INTERVAL if self.reconcile_interval is None else self.reconcile_interval

    def problems(self) -> list[str]:
        """See :meth:`backends.vfs.Options.problems`."""
        return super().problems() or [*self._problems()]

    def _problems(self) -> list[str]:
        if self.agent != EMBEDDED and not self.agent.startswith("/"):
            return [f"options.agent: {EMBEDDED}, or the absolute path of the agent's socket"]
        own = ("ids", "projects", "projid", "reconcile_interval")
        if self.agent != EMBEDDED:
            return [
                f"options.{name.replace('_', '-')}: belongs into the configuration of the agent"
                for name in own
                if getattr(self, name) is not None
            ]
        if self.ids is not None and not is_range(self.ids):
            return [f"options.ids: {RANGE}"]
        return [
            f"options.{name}: an absolute path"
            for name in ("projects", "projid")
            if not (getattr(self, name) or "/").startswith("/")
        ]


register_tables(Options)


def connect(options: Options, name: str, path: str, threads: IThreads, reactor: Any) -> IProjects:
    """
    Find what sets the limits of a volume.

    :param name: the volume's name.
    :param path: its directory.
    :param threads: its threads.
    :raises StorageProxyError: when it is not there; it says what to do.
    """
    if options.agent != EMBEDDED:
        _knock(options.agent, name)
        return RemoteProjects(reactor, options.agent, path)
    if os.geteuid():
        raise BackendFailure(
            f"volume {name}: only root can limit projects: start twistd storage-proxy-xfs-agent,"
            " and name its socket in options.agent"
        )
    if shutil.which("xfs_quota", path=_PATH) is None:
        raise BackendFailure(f"volume {name}: there is no xfs_quota: install xfsprogs")
    registry = Registry(options.projects or "/etc/projects", options.projid or "/etc/projid")
    ids = IDS if options.ids is None else to_range(options.ids)
    return Projects.embedded(reactor, path, threads, registry, ids)


def _knock(path: str, name: str) -> None:
    with socket.socket(socket.AF_UNIX) as visitor:
        # It is there as well when more wait for it than it takes: that is EAGAIN.
        visitor.setblocking(False)
        try:
            visitor.connect(path)
        except BlockingIOError:
            return
        except OSError as error:
            raise VolumeUnavailable(
                f"volume {name}: no agent answers at {path} ({error.strerror}): start twistd"
                f" storage-proxy-xfs-agent, and let it take calls from uid {os.geteuid()}"
            ) from None


@implementer(IBackend)
class XFSBackend:
    """``backend = "xfs"``."""

    name = "xfs"

    def check(self, name: str, settings: VolumeSettings) -> list[str]:
        """See :meth:`storageproxy.interfaces.IBackend.check`."""
        return vfs.check_options(settings, Options)

    def volume(self, name: str, settings: VolumeSettings, reactor: Any) -> XFSVolume:
        """See :meth:`storageproxy.interfaces.IBackend.volume`."""
        options = structure(settings.options, Options)
        threads = options.make_threads(name, reactor)
        return XFSVolume(
            name,
            settings.path,
            settings.fsprefix,
            threads,
            reactor,
            # Not yet: the daemon may become an ordinary user before it serves.
            partial(connect, options, name, settings.path, threads, reactor),
            Kernel(),
            options.durability,
            options.reconciling,
        )

# -*- test-case-name: tests.test_ceph_backend -*-
"""
``backend = "cephfs"``: its options.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from attrs import define
from zope.interface import implementer

from backends import vfs
from backends.cephfs.attributes import Attributes
from backends.cephfs.cluster import Cluster
from backends.cephfs.volume import CephFSVolume
from storageproxy import process
from storageproxy.config import VolumeSettings, register_tables
from storageproxy.durability import Durability
from storageproxy.interfaces import IBackend
from storageproxy.schema import Flag, structure

#: Seconds at most that ceph(8) may take.
MOST_PATIENCE = 15.0


@define(frozen=True)
class Options(vfs.Options):
    """
    ``[volume.NAME.options]``: those of the plain backend, and whom to ask how the cluster is.

    :param exact_usage: whether files are counted one by one, rather than by the cluster.
    :param client: as whom ceph(8) is run, such as ``client.storage-proxy``; None for not at all.
    :param conf: its configuration, when it is not ``/etc/ceph/ceph.conf``.
    :param keyring: where the key is, when the configuration does not say so.
    :param fs_name: the file system, when the cluster has several.
    """

    # Whether one daemon has the volume or several, a machine's end is seen by others.
    durability: Durability = Durability.SHARED
    exact_usage: Flag = Flag(False)
    client: str | None = None
    conf: str | None = None
    keyring: str | None = None
    fs_name: str | None = None

    def problems(self) -> list[str]:
        """See :meth:`backends.vfs.Options.problems`."""
        return super().problems() or [*self._problems()]

    def _problems(self) -> list[str]:
        if self.client is None:
            return [
                f"options.{name.replace('_', '-')}: is for the ceph command, which is run as"
                " options.client says"
                for name in ("conf", "keyring", "fs_name")
                if getattr(self, name) is not None
            ]
        kind, dot, name = self.client.partition(".")
        if kind != "client" or not name:
            return ["options.client: such as client.storage-proxy"]
        if self.fs_name is not None and (self.fs_name or "-").startswith("-"):
            return ["options.fs-name: the name of a file system"]
        return [
            f"options.{name}: an absolute path"
            for name in ("conf", "keyring")
            if getattr(self, name) is not None and not getattr(self, name).startswith("/")
        ]

    def make_cluster(self, volume: str, reactor: Any) -> Cluster | None:
        """Whom to ask, if anybody."""
        if self.client is None:
            return None
        patience = min(self.deadline, MOST_PATIENCE)
        argv = ["ceph", "--name", self.client, "--connect-timeout", f"{max(1, int(patience))}"]
        if self.conf is not None:
            argv += ["--conf", self.conf]
        if self.keyring is not None:
            argv += ["--keyring", self.keyring]
        run = partial(_run, reactor, patience)
        return Cluster(reactor, run, argv, volume, self.fs_name or "")


register_tables(Options)


def _run(reactor: Any, patience: float, argv: Any) -> Any:
    return process.run(reactor, argv, patience)


@implementer(IBackend)
class CephFSBackend:
    """``backend = "cephfs"``."""

    name = "cephfs"

    def check(self, name: str, settings: VolumeSettings) -> list[str]:
        """See :meth:`storageproxy.interfaces.IBackend.check`."""
        return vfs.check_options(settings, Options)

    def volume(self, name: str, settings: VolumeSettings, reactor: Any) -> CephFSVolume:
        """See :meth:`storageproxy.interfaces.IBackend.volume`."""
        options = structure(settings.options, Options)
        return CephFSVolume(
            name,
            settings.path,
            settings.fsprefix,
            options.make_threads(name, reactor),
            reactor,
            Attributes(),
            options.durability,
            options.make_cluster(name, reactor),
            options.exact_usage,
        )

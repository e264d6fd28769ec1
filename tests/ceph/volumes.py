"""
Volumes on mounts of the cluster, in the process of the test.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from twisted.internet import reactor
from twisted.trial.unittest import TestCase

from backends.cephfs.backend import CephFSBackend
from backends.cephfs.volume import CephFSVolume
from storageproxy.config import VolumeSettings
from storageproxy.vfolder import VFolderID
from tests.ceph import counting

if TYPE_CHECKING:
    Case = TestCase
else:
    Case = object


class OnCephFS(Case):
    """To be mixed into a TestCase, in front of all else: a test with volumes."""

    timeout = 120
    #: The mount that they are on.
    mount = "one"

    def make_path(self) -> str:
        """A directory on the mount."""
        path = counting.cluster().mount(self.mount) / uuid4().hex
        path.mkdir()
        self.addCleanup(remove, path)
        return str(path)

    def make_volume(self, path: str, **options: Any) -> CephFSVolume:
        """A volume as the configuration makes it."""
        settings = VolumeSettings(backend="cephfs", path=path, options=options)
        volume = CephFSBackend().volume("test", settings, reactor)
        self.addCleanup(volume.threads.stop)
        return volume


class VolumeCase(OnCephFS, TestCase):
    """A test with one volume."""

    def setUp(self) -> None:
        self.path = self.make_path()
        self.volume = self.make_volume(self.path)

    def place(self, vfid: VFolderID, *names: str) -> Path:
        """The path of something in a vfolder."""
        return Path(self.path, *vfid.layout, *names)

    def fill(self, vfid: VFolderID) -> None:
        """Put some files and directories into a vfolder."""
        for name in ("sub/deep/er", "sub/empty"):
            self.place(vfid, name).mkdir(parents=True)
        for name in ("top", "sub/one", "sub/deep/er/two"):
            self.place(vfid, name).write_text(name)

    def trash(self) -> list[str]:
        """What is in the volume's trash."""
        place = Path(self.path, ".storage-proxy", "trash")
        return sorted(os.listdir(place)) if place.exists() else []


def remove(path: Path) -> None:
    """Remove a directory with its snapshots."""
    for top, _, _ in os.walk(path):
        snapshots = Path(top, ".snap")
        for name in os.listdir(snapshots):
            # Others are of a directory above.
            if not name.startswith("_"):
                (snapshots / name).rmdir()
    shutil.rmtree(path)

"""
A cluster for the tests of a process, and what they do with it.
"""

from __future__ import annotations

import atexit
import functools
import os
import shutil
import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from uuid import uuid4

from twisted.trial.unittest import SynchronousTestCase

from tests.engines.ceph import Cluster
from tests.functional.daemon import Daemon, select_pause

#: The variable that says where the cluster is to lie.
DIRECTORY = "CEPH_TESTS"
#: What a volume is.
BACKEND = "cephfs"


#: Its settings: several machines write to it.
OPTIONS = '[volume.local.options]\ndurability = "shared"'


def cluster(osds: int = 1) -> Cluster:
    """The cluster of this process; it ends when that does."""
    return _cluster(osds)


@functools.cache
def _cluster(osds: int) -> Cluster:
    given = os.environ.get(DIRECTORY)
    made = Cluster(Path(given or tempfile.mkdtemp(prefix="ceph-")), osds=osds)
    atexit.register(made.stop)
    made.start()
    return made


class CephCase(SynchronousTestCase):
    """A test with a directory of its own in the file system, and one outside of it."""

    #: Names of the mounts, in all of which it is.
    mounts: tuple[str, ...] = ("one", "two")
    #: How many storage daemons there are; the same in all cases of a module.
    osds = 1

    def setUp(self) -> None:
        self.cluster = cluster(self.osds)
        self.top = uuid4().hex
        self.tops = [self.cluster.mount(mount) / self.top for mount in self.mounts]
        self.tops[0].mkdir()
        self.addCleanup(self.remove)
        self.work = Path(tempfile.mkdtemp(prefix="daemons-")).resolve()
        self.addCleanup(shutil.rmtree, self.work)
        super().setUp()

    def remove(self) -> None:
        """Remove the directory, by a mount that works."""
        shutil.rmtree(self.cluster.mount(self.mounts[0]) / self.top)

    def make_daemon_on(self, mount: int, options: str = OPTIONS) -> Daemon:
        """
        A daemon with a volume ``local``, which is not started yet, and ends with the test.

        :param mount: the index of the mount that it is on.
        :param options: the table of its options.
        """
        root = self.work / uuid4().hex
        root.mkdir()
        daemon = Daemon(
            root,
            ("local",),
            mounts=self.tops[mount],
            backend=BACKEND,
            volume_settings=options,
        )
        self.addCleanup(end, daemon)
        return daemon

    def eventually(self, condition: Callable[[], bool]) -> None:
        """Return when something holds."""
        while not condition():
            select_pause()


def end(daemon: Daemon) -> None:
    """Stop a daemon, if the test has not."""
    if daemon.process is not None and daemon.process.poll() is None:
        daemon.stop()


def held(daemon: Daemon) -> list[int]:
    """How many bytes there are of each upload that a daemon works on."""
    assert daemon.process is not None
    sizes = []
    with suppress(FileNotFoundError):
        for path in Path(f"/proc/{daemon.process.pid}/fd").iterdir():
            with suppress(FileNotFoundError):
                if Path(os.readlink(path)).parent.name == ".upload":
                    sizes.append(path.stat().st_size)
    return sizes

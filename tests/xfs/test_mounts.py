"""
What the backend says of file systems that it cannot use, and that the kernel's answers are read
right.
"""

from __future__ import annotations

import os
import subprocess
from contextlib import ExitStack
from pathlib import Path
from uuid import uuid4

from twisted.internet import reactor
from twisted.trial.unittest import TestCase

from backends.xfs.backend import XFSBackend
from backends.xfs.interfaces import Account, Limit, Quotas
from backends.xfs.kernel import Kernel
from storageproxy.config import VolumeSettings
from storageproxy.errors import StorageProxyError
from tests.engines import xfs
from tests.xfs import kernel

MEBI = 1 << 20


class MountTests(TestCase):
    def mounted(self, *options: str) -> Path:
        """A new file system, mounted until the test ends."""
        directory = Path("/run/mounts", uuid4().hex)
        directory.mkdir(parents=True)
        mounts = ExitStack()
        self.addCleanup(mounts.close)
        return Path(mounts.enter_context(xfs.mounted(str(directory), *options)))

    async def complaint(self, path: Path, **options: str) -> str:
        """What the volume says at its start; "" when it can be used."""
        settings = VolumeSettings(backend="xfs", path=str(path), options=options)
        volume = XFSBackend().volume("test", settings, reactor)
        self.addCleanup(volume.threads.stop)
        try:
            await volume.check()
        except StorageProxyError as error:
            self.assertIn(str(path), str(error))
            return str(error)
        return ""

    async def test_good(self) -> None:
        """There is nothing to say with the option that the documentation names."""
        self.assertEqual(await self.complaint(self.mounted("pquota")), "")

    async def test_no_quotas(self) -> None:
        """Without project quotas it says which option is missing."""
        for options in ((), ("uquota",)):
            self.assertIn("with the option pquota", await self.complaint(self.mounted(*options)))

    async def test_not_enforced(self) -> None:
        """It does not do with quotas that are counted only."""
        self.assertIn("does not limit", await self.complaint(self.mounted("pqnoenforce")))

    async def test_not_xfs(self) -> None:
        """Another file system is told."""
        path = Path(os.environ["TMPDIR"]).resolve()
        self.assertIn("not on XFS", await self.complaint(path))

    async def test_no_agent(self) -> None:
        """An agent that does not run is told, with its socket."""
        path = self.mounted("pquota")
        said = await self.complaint(path, agent=f"{path}/socket")
        self.assertIn(f"no agent answers at {path}/socket", said)


class KernelTests(TestCase):
    def test_quotas(self) -> None:
        """How quotas are switched on is seen, by descriptor and by device."""
        mounts = ExitStack()
        self.addCleanup(mounts.close)
        wanted = {"pquota": Quotas.ENFORCED, "pqnoenforce": Quotas.COUNTED, "noquota": Quotas.OFF}
        for option, state in wanted.items():
            directory = f"/run/states/{option}"
            os.makedirs(directory)
            path = mounts.enter_context(xfs.mounted(directory, option))
            with open(os.path.join(path, "file"), "wb") as file:
                for by_descriptor in (True, False):
                    self.assertIs(Kernel(by_descriptor).quotas(file.fileno()), state)

    def test_account(self) -> None:
        """Limits and usage are read as xfs_quota(8) tells them, by descriptor and by device."""
        folder = kernel.mount() / uuid4().hex
        folder.mkdir()
        kernel.set_project(folder, 301)
        kernel.set_limit(301, 8 * MEBI, 50)
        (folder / "file").write_bytes(bytes(3 * MEBI))
        descriptor = os.open(folder, os.O_RDONLY)
        self.addCleanup(os.close, descriptor)
        expected = Account(301, Limit(8 * MEBI, 50), 3 * MEBI, 2)
        for by_descriptor in (True, False):
            found = Kernel(by_descriptor)
            self.assertEqual(found.account(descriptor, 301), expected)
            self.assertIn(expected, list(found.accounts(descriptor)))
            self.assertEqual(found.account(descriptor, 302), Account(302, Limit(0), 0, 0))

    def test_odd_mount_point(self) -> None:
        """A mount point with blanks in its name is no trouble."""
        directory = "/run/odd/with blank\tand tab"
        os.makedirs(directory)
        mounts = ExitStack()
        self.addCleanup(mounts.close)
        path = mounts.enter_context(xfs.mounted(directory, "pquota"))
        subprocess.run(["chattr", "-p", "303", "+P", path], check=True)
        descriptor = os.open(path, os.O_RDONLY)
        self.addCleanup(os.close, descriptor)
        for by_descriptor in (True, False):
            self.assertGreater(Kernel(by_descriptor).account(descriptor, 303).inodes, 0)

"""
What the kernel does, as the backend rests on it.
"""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from uuid import uuid4

from twisted.trial.unittest import SynchronousTestCase

from tests.xfs import kernel

MEBI = 1 << 20
_FICLONE = 0x40049409


class KernelCase(SynchronousTestCase):
    """A test with a directory of its own, that is of no project."""

    def setUp(self) -> None:
        self.top = kernel.mount() / uuid4().hex
        self.top.mkdir()
        self.addCleanup(shutil.rmtree, self.top)

    def assertFails(self, number: int, call: Callable[..., object], *args: object) -> None:
        """Complain unless a call fails with this error."""
        error = self.assertRaises(OSError, call, *args)
        self.assertEqual(errno.errorcode[error.errno or 0], errno.errorcode[number])

    def folder(self, name: str, number: int, size: int = 0, inodes: int = 0) -> Path:
        """Make a directory with a project, and limit that."""
        path = self.top / name
        path.mkdir()
        kernel.set_project(path, number)
        kernel.set_limit(number, size, inodes)
        self.addCleanup(kernel.set_limit, number, 0)
        return path


class LimitTests(KernelCase):
    def test_bytes(self) -> None:
        """A full project is told as a full disk; moving and removing goes on."""
        folder = self.folder("a", 101, MEBI)
        with open(folder / "file", "wb", buffering=0) as file:
            # Of what does not fit as a whole, nothing is written.
            self.assertFails(errno.ENOSPC, file.write, bytes(2 * MEBI))
            for _ in range(16):
                file.write(bytes(MEBI // 16))
            self.assertFails(errno.ENOSPC, file.write, b"more")
            self.assertFails(errno.ENOSPC, os.posix_fallocate, file.fileno(), MEBI, 4096)
        self.assertFails(errno.ENOSPC, (folder / "other").touch)
        self.assertFails(errno.ENOSPC, (folder / "sub").mkdir)
        (folder / "file").rename(folder / "renamed")
        os.truncate(folder / "renamed", MEBI // 2)
        (folder / "other").touch()

    def test_inodes(self) -> None:
        """The directory itself counts; another name for a file does not."""
        folder = self.folder("a", 101, inodes=3)
        (folder / "one").touch()
        (folder / "two").symlink_to("one")
        self.assertFails(errno.ENOSPC, (folder / "three").touch)
        (folder / "three").hardlink_to(folder / "one")
        self.assertEqual(kernel.charges()[101].inodes, 3)

    def test_statvfs(self) -> None:
        """Anyone learns limit and usage from statvfs(2) of a directory, at once."""
        folder = self.folder("a", 101, 8 * MEBI, 20)
        sub = folder / "sub"
        sub.mkdir()
        (sub / "file").write_bytes(bytes(3 * MEBI))
        for path in (folder, sub):
            found = os.statvfs(path)
            self.assertEqual(found.f_blocks * found.f_frsize, 8 * MEBI)
            self.assertEqual((found.f_blocks - found.f_bfree) * found.f_frsize, 3 * MEBI)
            self.assertEqual((found.f_files, found.f_ffree), (20, 17))
        whole = os.statvfs(sub / "file")
        self.assertEqual(whole.f_blocks, os.statvfs(kernel.mount()).f_blocks)

    def test_statvfs_without_limit(self) -> None:
        """Without a limit, or with one above the size of the file system, it tells that."""
        whole = os.statvfs(kernel.mount()).f_blocks
        self.assertEqual(os.statvfs(self.folder("a", 101)).f_blocks, whole)
        self.assertEqual(os.statvfs(self.folder("b", 102, 1 << 50)).f_blocks, whole)

    def test_limit_outlives_folder(self) -> None:
        """A limit stays when all that was charged is gone, for whoever gets the id next."""
        folder = self.folder("a", 101, MEBI)
        shutil.rmtree(folder)
        self.assertEqual(kernel.charges()[101], (0, MEBI, 0, 0))
        kernel.set_limit(101, 0)
        self.assertNotIn(101, kernel.charges())

    def test_shared_blocks(self) -> None:
        """Blocks that two projects share are charged to both, and do not pass a limit."""
        one, two = self.folder("a", 101), self.folder("b", 102, 6 * MEBI)
        (one / "file").write_bytes(bytes(4 * MEBI))
        with open(one / "file") as source:
            with open(two / "file", "wb") as target:
                fcntl.ioctl(target, _FICLONE, source.fileno())
            for number in (101, 102):
                self.assertGreaterEqual(kernel.charges()[number].size, 4 * MEBI)
            with open(two / "again", "wb") as target:
                self.assertFails(errno.ENOSPC, fcntl.ioctl, target, _FICLONE, source.fileno())


class ProjectTests(KernelCase):
    def test_inherited(self) -> None:
        """What is made in a directory has its project, and directories pass it on."""
        folder = self.folder("a", 101)
        (folder / "sub").mkdir()
        (folder / "sub" / "file").touch()
        self.assertEqual(kernel.project(folder / "sub"), (101, True))
        self.assertEqual(kernel.project(folder / "sub" / "file"), (101, False))

    def test_moves(self) -> None:
        """Nothing is moved or linked into another project, not even from none."""
        one, two = self.folder("a", 101), self.folder("b", 102)
        for name in (one / "file", self.top / "file"):
            name.touch()
            self.assertFails(errno.EXDEV, name.rename, two / "file")
            self.assertFails(errno.EXDEV, os.link, name, two / "file")

    def test_moved_out(self) -> None:
        """What is moved out to where there is no project stays charged."""
        folder = self.folder("a", 101)
        (folder / "file").write_bytes(bytes(MEBI))
        (folder / "file").rename(self.top / "file")
        folder.rmdir()
        self.assertEqual(kernel.project(self.top / "file").id, 101)
        self.assertEqual(kernel.charges()[101], (MEBI, 0, 1, 0))

    def test_folder_moves(self) -> None:
        """The directory of a project itself can be moved to where there is none, and back."""
        folder = self.folder("a", 101)
        (self.top / "trash").mkdir()
        folder.rename(self.top / "trash" / "a")
        (self.top / "trash" / "a").rename(folder)
        self.assertEqual(kernel.project(folder), (101, True))

    def test_owner(self) -> None:
        """Who owns a directory can change its project, without any privilege; nobody else can."""
        folder = self.folder("a", 101)
        os.chown(folder, 1234, 1234)
        change = ["xfs_io", "-r", "-c", "chproj 7", str(folder)]
        for user in (1235, 1234):
            self.assertEqual(kernel.project(folder).id, 101)
            subprocess.run(
                ["setpriv", f"--reuid={user}", f"--regid={user}", "--clear-groups", *change],
                stderr=subprocess.DEVNULL,
            )
        self.assertEqual(kernel.project(folder).id, 7)


class CommandTests(KernelCase):
    def test_exit_status(self) -> None:
        """xfs_quota(8) says that it has succeeded when it has not."""
        self.folder("a", 101)
        kernel.quota("limit -p bsoft=2m bhard=1m 101")
        self.assertNotIn(MEBI, kernel.charges().get(101, ()))
        kernel.quota("limit -p bhard=1m 101", top=self.top / "missing")

    def test_recipe(self) -> None:
        """A test volume is made with dd, mkfs.xfs, losetup and mount."""
        image, top = Path("/run/xfs/recipe.img"), Path("/run/xfs/recipe")
        top.mkdir()
        free = ["losetup", "-f"]
        subprocess.run(
            ["dd", "if=/dev/zero", f"of={image}", "bs=1M", "count=0", "seek=512", "status=none"],
            check=True,
        )
        subprocess.run(["mkfs.xfs", "-q", image], check=True)
        device = subprocess.run(free, check=True, capture_output=True, text=True).stdout.strip()
        subprocess.run(["losetup", device, image], check=True)
        subprocess.run(["mount", "-o", "loop", "-o", "pquota", device, top], check=True)
        self.addCleanup(subprocess.run, ["losetup", "-d", device], check=True)
        self.addCleanup(subprocess.run, ["umount", top], check=True)
        self.assertIn("prjquota", Path("/proc/mounts").read_text().partition(f" {top} ")[2])
        kernel.quota("limit -p bhard=1m 5", top)
        self.assertIn("1024", kernel.quota("report -p -n -N -b", top))

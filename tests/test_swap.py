"""
While somebody swaps a directory for a link out of the folder, nothing outside is touched or read.
"""

from __future__ import annotations

import contextlib
import json
import os
import stat
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from random import Random
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from storageproxy import beneath, cloning, files, removal, trees
from storageproxy.beneath import Directory
from storageproxy.durability import Durability
from storageproxy.errors import StorageProxyError
from storageproxy.threads import Progress
from storageproxy.transfer import archive, staging
from storageproxy.transfer.bodies import Changed
from tests.test_beneath import descriptors

#: How many operations are made while the directories are swapped.
OPERATIONS = 100_000
#: The same on kernels without openat2.
OPERATIONS_WITHOUT_OPENAT2 = 20_000
#: After so many, a new folder is taken: directories get slow when they are swapped for long.
ROUND = 2_000

#: In all files outside, and in none inside.
OUTSIDE = b"OUT-OF-BOUNDS"
#: The size of a file outside that would show in any count.
HUGE = 1 << 40

#: What an operation may say to what is going on.
REFUSED = (OSError, StorageProxyError, Changed)

#: Exchanges pairs of names until it is killed, or its parent is gone.
SWAPPER = """
import ctypes, errno, os, sys
renameat2 = ctypes.CDLL(None, use_errno=True).renameat2
names = [os.fsencode(name) for name in sys.argv[1:]]
pairs = list(zip(names[::2], names[1::2]))
parent = os.getppid()
here, exchange = -100, 2
if renameat2(here, pairs[0][0], here, pairs[0][1], exchange):
    sys.exit(3)
print("swapping", flush=True)
while os.getppid() == parent:
    for _ in range(1000):
        for one, other in pairs:
            renameat2(here, one, here, other, exchange)
"""


def reopen(folder: Directory) -> Callable[[], Directory]:
    """What opens the same folder again."""
    return lambda: Directory(os.dup(folder.descriptor))


class SwapTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.random = Random(7)
        self.done: Counter[str] = Counter()
        self.refused: Counter[str] = Counter()
        # What reaches the disk when is not at stake here, and takes most of the time.
        self.patch(os, "fsync", lambda descriptor: None)

    def begin(self) -> None:
        """Make a folder, and what lies outside of it."""
        top = os.path.abspath(self.mktemp())
        self.outside = os.path.join(top, "outside")
        self.volume = os.path.join(top, "volume")
        self.path = os.path.join(self.volume, "folder")
        self.copies = os.path.join(top, "copies")
        for path in (self.path, self.copies, os.path.join(self.path, "nest")):
            os.makedirs(path)
        # The same names as inside, so that whatever gets out finds something.
        self.furnish(self.outside, OUTSIDE)
        with open(os.path.join(self.outside, "canary"), "wb") as file:
            file.write(OUTSIDE)
        with open(os.path.join(self.outside, "huge"), "wb") as file:
            file.truncate(HUGE)
        for directory, _, names in os.walk(self.outside):
            for name in names:
                # Reading would show in the time of access, as it is before that of change.
                os.utime(os.path.join(directory, name), (1, 2))
        self.pairs = [
            (self.at("door"), self.at("spare"), self.outside),
            (self.at("nest", "door"), self.at("nest", "spare"), "../../../outside"),
        ]
        for door, spare, target in self.pairs:
            self.furnish(door, b"inside")
            os.symlink(target, spare)
        self.root = Directory.open_root(self.volume)
        self.addCleanup(self.root.close)
        self.folder = Directory.open_root(self.path)
        self.addCleanup(self.folder.close)

    def at(self, *names: str) -> str:
        return os.path.join(self.path, *names)

    def furnish(self, path: str, content: bytes) -> None:
        os.makedirs(os.path.join(path, "sub", "deep"), exist_ok=True)
        for name in ("file", "other", "sub/file", "sub/deep/file"):
            with open(os.path.join(path, name), "wb") as file:
                file.write(content)
        with contextlib.suppress(FileExistsError):
            os.link(os.path.join(path, "file"), os.path.join(path, "sub", "linked"))

    def snapshot(self) -> dict[str, Any]:
        """All that can be seen of what is outside."""
        found: dict[str, Any] = {}
        for directory, directories, names in os.walk(self.outside):
            for name in [".", *directories, *names]:
                path = os.path.join(directory, name)
                status = os.lstat(path)
                seen: list[Any] = [
                    status.st_mode,
                    status.st_ino,
                    status.st_nlink,
                    status.st_size,
                    status.st_mtime_ns,
                    status.st_ctime_ns,
                ]
                if stat.S_ISREG(status.st_mode):
                    seen.append(status.st_atime_ns)
                    if status.st_size < HUGE:
                        descriptor = os.open(path, os.O_RDONLY | os.O_NOATIME)
                        seen.append(os.read(descriptor, 1 << 16))
                        os.close(descriptor)
                found[path] = seen
        return found

    def repair(self) -> None:
        """Put both of each pair back where a deletion has taken one away; nobody swaps then."""
        for door, spare, target in self.pairs:
            for one, other in ((door, spare), (spare, door)):
                if not os.path.lexists(one):
                    if os.path.islink(other):
                        os.makedirs(one)
                    else:
                        os.symlink(target, one)
            for one in (door, spare):
                # By the descriptor, as it may become a link at any time.
                try:
                    opened = os.open(one, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
                except OSError:
                    continue
                self.furnish(f"/proc/self/fd/{opened}", b"inside")
                os.close(opened)

    # ---- operations, each through a name that may be a link out

    def door(self) -> str:
        return self.random.choice(("door", "nest/door", "spare", "nest/spare"))

    def name(self) -> str:
        return self.random.choice(("file", "other", "sub/file", "sub/deep/file"))

    def new(self) -> str:
        return f"{self.door()}/{self.random.choice(('', 'sub/'))}new{self.random.randrange(8)}"

    def read(self) -> None:
        with self.folder.open_file(f"{self.door()}/{self.name()}") as file:
            self.assertNotIn(OUTSIDE, file.read(0, 100))

    def status(self) -> None:
        status = self.folder.status(f"{self.door()}/{self.name()}", follow=True)
        self.assertNotEqual(status.st_dev, 0)
        self.assertNotEqual(status.st_size, len(OUTSIDE))

    def list(self) -> None:
        door = self.door()
        listing = files.listing(lambda: self.folder.descend("."), files.scan, self.path, door, 0)
        for item in json.loads(b"".join(listing))["items"]:
            self.assertNotIn(item["name"], ("canary", "huge"))

    def make_directory(self) -> None:
        files.make_directory(self.folder, self.new(), False, False)

    def make_directories(self) -> None:
        files.make_directory(self.folder, f"{self.new()}/below/it", True, True)

    def move_in(self) -> None:
        name = f"top{self.random.randrange(4)}"
        with open(self.at(name), "wb"):
            pass
        files.rename(self.folder, name, self.new())

    def move_out(self) -> None:
        target = f"top{self.random.randrange(4)}"
        files.rename(self.folder, f"{self.door()}/{self.name()}", target)
        with self.folder.open_file(target) as file:
            self.assertNotIn(OUTSIDE, file.read(0, 100))

    def delete(self) -> None:
        path = self.random.choice((self.new(), f"{self.door()}/{self.name()}"))
        files.delete(self.folder, "test", [path], False)

    def delete_tree(self) -> None:
        path = self.random.choice((self.new(), f"{self.door()}/sub"))
        files.delete(self.folder, "test", [path], True)

    def delete_door(self) -> None:
        try:
            files.delete(self.folder, "test", [self.door()], True)
        finally:
            self.repair()

    def write(self) -> None:
        path = self.random.choice((self.new(), f"{self.new()}/made", f"{self.door()}/file"))
        staging.check_target(self.folder, path)
        uploads = staging.Staging(self.root, self.folder, Durability.PATCH)
        session = uploads.create()
        with uploads.hold(session).file as file:
            file.write([b"inside"], 0)
            uploads.finish(session, file, path)

    def usage(self) -> None:
        self.assertLess(trees.usage(self.folder).used_bytes, HUGE)

    def usage_of_door(self) -> None:
        with self.folder.descend(self.door()) as top:
            self.assertLess(trees.usage(top).used_bytes, HUGE)

    def copy(self) -> None:
        with Directory.open_root(self.copies) as copies:
            try:
                os.mkdir("copy", dir_fd=copies.descriptor)
                with copies.descend("copy") as target:
                    cloning.copy(self.folder, target, Progress().step)
            finally:
                for directory, _, names in os.walk(os.path.join(self.copies, "copy")):
                    self.assertEqual({"canary", "huge"} & set(names), set())
                    for name in names:
                        path = os.path.join(directory, name)
                        if not os.path.islink(path):
                            with open(path, "rb") as file:
                                self.assertNotIn(OUTSIDE, file.read())
                removal.remove(copies, "copy")

    def copy_into(self) -> None:
        with Directory.open_root(os.path.join(self.copies, "..", "source")) as source:
            cloning.copy(source, self.folder, Progress().step)

    def archive(self) -> None:
        path = self.random.choice((".", self.door()))
        body = archive.archive(reopen(self.folder), archive.members(self.folder, path, Progress()))
        self.assertLess(body.length, HUGE)
        for chunk in body.chunks():
            self.assertNotIn(OUTSIDE, chunk)

    def metadata(self) -> None:
        with self.folder.descend(self.door()) as top:
            files.write_metadata(top, b"inside")
            files.read_metadata(top)

    def sweep(self) -> None:
        with self.folder.descend(self.door()) as top:
            staging.sweep(top, 1e12)

    # ---- many of them

    def make_many(self, count: int) -> None:
        chances: dict[Callable[[], None], int] = {
            self.read: 350,
            self.status: 150,
            self.list: 150,
            self.make_directory: 80,
            self.make_directories: 10,
            self.move_in: 60,
            self.move_out: 30,
            self.delete: 60,
            self.delete_tree: 30,
            self.delete_door: 5,
            self.write: 25,
            self.usage: 12,
            self.usage_of_door: 12,
            self.copy: 4,
            self.copy_into: 4,
            self.archive: 6,
            self.metadata: 6,
            self.sweep: 6,
        }
        operations, weights = list(chances), list(chances.values())
        source = os.path.join(self.copies, "..", "source")
        for door in ("door", "nest/door"):
            self.furnish(os.path.join(source, door), b"inside")
        for number, operation in enumerate(self.random.choices(operations, weights, k=count)):
            try:
                operation()
            except REFUSED:
                self.refused[operation.__name__] += 1
            else:
                self.done[operation.__name__] += 1
            if not number % 500:
                self.repair()

    def run_rounds(self, count: int) -> None:
        for _ in range(count // ROUND):
            self.begin()
            self.run_with_swapper(ROUND)
        self.assertEqual(sum(self.done.values()) + sum(self.refused.values()), count)
        # Both happened, so the test has seen what it is about.
        for name in ("read", "list", "make_directory", "move_in", "delete", "write"):
            self.assertGreater(self.done[name], 0, name)
            self.assertGreater(self.refused[name], 0, name)
        for name in ("usage", "copy", "archive"):
            self.assertGreater(self.done[name], 0, name)

    def run_with_swapper(self, count: int) -> None:
        before, open_before = self.snapshot(), descriptors()
        names = [name for door, spare, _ in self.pairs for name in (door, spare)]
        swapper = subprocess.Popen([sys.executable, "-c", SWAPPER, *names], stdout=subprocess.PIPE)
        assert swapper.stdout is not None
        try:
            if swapper.stdout.readline() != b"swapping\n":
                self.fail("the file system of the tests cannot exchange two names")
            self.make_many(count)
            self.assertIsNone(swapper.poll())
        finally:
            swapper.kill()
            swapper.wait()
            swapper.stdout.close()
        self.assertEqual(self.snapshot(), before)
        self.assertEqual(descriptors(), open_before)

    def test_swap(self) -> None:
        """Of 100,000 operations not one leaves the folder."""
        self.run_rounds(OPERATIONS)

    def test_swap_without_openat2(self) -> None:
        """Nothing leaves the folder on kernels without openat2 either."""
        self.patch(beneath, "open_beneath", beneath._walk)
        self.run_rounds(OPERATIONS_WITHOUT_OPENAT2)

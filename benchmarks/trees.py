"""
Big trees: cloned, deleted, counted and archived, beside the tools that everyone has.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4

from attrs import define, field, frozen
from bench import Bench, remove, timed, write_file, write_tree
from clients import request, run, single
from scenarios import OURS, Measurement, Scenario, Target
from servers import NotHere, StorageProxy

ROUNDS = 3


@frozen
class Tree:
    """A vfolder with very many small files, and copies of it."""

    vfid: str
    path: Path
    copies: dict[str, tuple[str, Path]] = field(factory=dict)

    def drop(self, who: str) -> None:
        """Remove the copy that somebody has made."""
        if who in self.copies:
            # Quicker than doing it in Python.
            timed(["rm", "-rf", str(self.copies.pop(who)[1])])


def big_tree(bench: Bench) -> Tree:
    """The one of all scenarios."""
    tree = Tree(*bench.folder())
    write_tree(tree.path, bench.sizes.tree_files, bench.sizes.tree_directories)
    return tree


@define(kw_only=True, eq=False)
class OnTree(Scenario):
    """Something that is done with the big tree."""

    tree: Tree = field(init=False)

    def prepare(self, bench: Bench) -> None:
        """The tree."""
        self.tree = bench.once(big_tree)

    def counted(self, bench: Bench, daemon: StorageProxy, vfid: str) -> list[str]:
        """Complain when the daemon does not find all files of the tree in a vfolder."""
        found = daemon.call("GET", "/folder/usage", {"volume": "none", "vfid": vfid})
        if found["file_count"] == bench.sizes.tree_files:
            return []
        return [f"{found['file_count']} files instead of {bench.sizes.tree_files}"]


class Clone(OnTree):
    """A copy, beside ``cp -a``. It stays for those who delete."""

    def measure(self, bench: Bench, who: str, daemon: StorageProxy) -> Measurement:
        """Until the answer."""
        self.tree.drop(who)
        vfid, path = self.tree.copies[who] = bench.new_path()
        bench.sync()
        if who == OURS:
            seconds = _clone(daemon, "none", self.tree.vfid, vfid)
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            seconds = timed(["cp", "-a", str(self.tree.path), str(path)])
        return Measurement(seconds, self.counted(bench, daemon, vfid))


def _clone(daemon: StorageProxy, volume: str, source: str, target: str) -> float:
    began = time.perf_counter()
    params = {"src_volume": volume, "src_vfid": source, "dst_volume": volume, "dst_vfid": target}
    daemon.call("POST", "/folder/clone", params)
    return time.perf_counter() - began


class Delete(OnTree):
    """A copy is deleted, beside ``rm -rf``."""

    def measure(self, bench: Bench, who: str, daemon: StorageProxy) -> Measurement:
        """Until the trash is empty."""
        if who not in self.tree.copies:
            vfid, path = self.tree.copies[who] = bench.new_path()
            path.parent.mkdir(parents=True, exist_ok=True)
            timed(["cp", "-a", str(self.tree.path), str(path)])
        vfid, path = self.tree.copies[who]
        bench.sync()
        if who == OURS:
            began = time.perf_counter()
            daemon.call("POST", "/folder/delete", {"volume": "none", "vfid": vfid})
            bench.empty_trash("none")
            seconds = time.perf_counter() - began
        else:
            seconds = timed(["rm", "-rf", str(path)])
        del self.tree.copies[who]
        return Measurement(seconds, ["it is still there"] if path.exists() else [])


class Usage(OnTree):
    """Files and bytes, beside ``du -s``; both read the tree from memory."""

    def measure(self, bench: Bench, who: str, daemon: StorageProxy) -> Measurement:
        """After a look that warms the caches."""
        timed(["du", "-s", str(self.tree.path)])
        if who != OURS:
            return Measurement(timed(["du", "-s", str(self.tree.path)]))
        began = time.perf_counter()
        errors = self.counted(bench, daemon, self.tree.vfid)
        return Measurement(time.perf_counter() - began, errors)


class ArchiveStart(OnTree):
    """The first byte of an archive of half the tree, its length included, beside ``du -s``."""

    def measure(self, bench: Bench, who: str, daemon: StorageProxy) -> Measurement:
        """Until the headers; the archive is read to its end nevertheless."""
        half = self.tree.path / "first"
        timed(["du", "-s", str(half)])
        if who != OURS:
            return Measurement(timed(["du", "-s", str(half)]))
        port, target = daemon.download("none", self.tree.vfid, "first")
        least = bench.sizes.tree_files // 2 * 1024
        load = run(1, [single(request(port, "GET", f"{target}&archive=true", least=least))])
        return Measurement(load.first, load.errors)


@define(kw_only=True, eq=False)
class Reflink(Scenario):
    """
    A clone of a big file where files can share their blocks, beside that of a small one.
    """

    _folders: dict[str, str] = field(factory=dict)

    def equip(self, bench: Bench) -> None:
        """A file system of that kind."""
        directory = bench.directory / "reflink"
        bench.enter(mounted(directory, bench.directory / "reflink.image", 3 * bench.sizes.big))
        bench.add_volume("reflink", directory)

    def prepare(self, bench: Bench) -> None:
        """Two vfolders with one file each."""
        for who, size in ((OURS, bench.sizes.big), ("tool", 4096)):
            self._folders[who], path = bench.folder("reflink")
            write_file(path / "file", size)
        subprocess.run(["sync", "-f", str(bench.volumes["reflink"])], check=True)

    def measure(self, bench: Bench, who: str, daemon: StorageProxy) -> Measurement:
        """The clone has to be there, and to take no space."""
        volume = bench.volumes["reflink"]
        target = str(uuid4())
        before = os.statvfs(volume).f_bfree
        seconds = _clone(daemon, "reflink", self._folders[who], target)
        subprocess.run(["sync", "-f", str(volume)], check=True)
        after = os.statvfs(volume)
        path = daemon.path("reflink", target) / "file"
        source = daemon.path("reflink", self._folders[who]) / "file"
        size = source.stat().st_size
        errors = []
        if path.stat().st_size != size:
            errors.append("the clone is not whole")
        used = (before - after.f_bfree) * after.f_bsize
        if used > max(size // 10, 4 * 1024 * 1024):
            errors.append(f"the clone of {size} bytes takes {used}")
        daemon.call("POST", "/folder/delete", {"volume": "reflink", "vfid": target})
        bench.empty_trash("reflink")
        return Measurement(seconds * 1000, errors)


@contextmanager
def mounted(directory: Path, image: Path, size: int) -> Iterator[None]:
    """
    A file system with reflinks in a file, XFS or btrfs.

    :raises NotHere: when it cannot be made or mounted.
    """
    places = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"
    if os.geteuid() != 0:
        raise NotHere("only root mounts a file system")
    for maker in (["mkfs.xfs", "-q", "-m", "reflink=1"], ["mkfs.btrfs", "-q"]):
        program = shutil.which(maker[0], path=places)
        if program is None:
            continue
        try:
            with image.open("wb") as file:
                # The least that both take.
                file.truncate(max(size, 512 * 1024 * 1024))
            directory.mkdir()
            for command in (
                [program, *maker[1:], str(image)],
                ["mount", "-o", "loop", str(image), str(directory)],
            ):
                done = subprocess.run(command, capture_output=True, text=True)
                if done.returncode:
                    raise NotHere(f"{' '.join(command)}: {done.stderr.strip()}")
            yield
        finally:
            subprocess.run(["umount", "-l", str(directory)], capture_output=True)
            remove(image)
        return
    raise NotHere("neither mkfs.xfs nor mkfs.btrfs is here")


SCENARIOS: list[Scenario] = [
    ArchiveStart(
        name="archive-start",
        title="first byte of an archive of 100,000 files, exact length included",
        unit="s",
        peers=("tool",),
        tool="du -s, warm",
        targets=(Target("tool", 3),),
        rounds=ROUNDS,
    ),
    Usage(
        name="tree-usage",
        title="usage of 200,000 files",
        unit="s",
        peers=("tool",),
        tool="du -s, warm",
        targets=(Target("tool", 2),),
        rounds=ROUNDS,
    ),
    Clone(
        name="tree-clone",
        title="clone of 200,000 small files",
        unit="s",
        peers=("tool",),
        tool="cp -a",
        targets=(Target("tool", 1.1),),
        rounds=ROUNDS,
    ),
    Delete(
        name="tree-delete",
        title="delete of 200,000 files, until the trash is empty",
        unit="s",
        peers=("tool",),
        tool="rm -rf",
        rounds=ROUNDS,
    ),
    Reflink(
        name="reflink",
        title="clone of a file of 1 GiB on a file system with reflinks",
        unit="ms",
        peers=("tool",),
        tool="clone of a file of 4 KiB",
        targets=(Target("tool", 2),),
    ),
]

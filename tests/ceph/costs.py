"""
What usage and limits cost for an empty folder and for one with 20,000 files:
``python -m tests.ceph.costs``. What counts is one against the other.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.task import react

from backends.cephfs.backend import CephFSBackend
from storageproxy.config import VolumeSettings
from storageproxy.testing import bare_id
from storageproxy.vfolder import VFolderID
from tests.engines.ceph import Cluster

FILES = 20_000
DIRECTORIES = 100
ROUNDS = 300


async def measure(work: Callable[[], Awaitable[object]], rounds: int = ROUNDS) -> float:
    """The median of the seconds that something takes."""
    times = []
    for _ in range(rounds):
        began = time.perf_counter()
        await work()
        times.append(time.perf_counter() - began)
    return statistics.median(times)


def fill(folder: Path) -> None:
    """Put the files into a folder."""
    for number in range(FILES):
        directory = folder / str(number % DIRECTORIES)
        directory.mkdir(exist_ok=True)
        (directory / str(number)).write_bytes(b"x")


async def compare(path: Path, reactor: Any) -> None:
    """Print a table."""
    volumes = {
        name: CephFSBackend().volume(
            "test", VolumeSettings(backend="cephfs", path=str(path), options=options), reactor
        )
        for name, options in (("counted", {}), ("exact", {"exact-usage": True}))
    }
    volume, exact = volumes.values()
    for number in range(2):
        await volume.create_folder(bare_id(number), None, 1 << 40)
    fill(path.joinpath(*bare_id(1).layout))
    print(f"milliseconds for an empty folder and for one with {FILES} files, and their ratio")

    async def row(what: str, ask: Callable[[VFolderID], Awaitable[object]], rounds: int) -> None:
        few, many = [await measure(lambda n=n: ask(bare_id(n)), rounds) for n in range(2)]  # type: ignore[misc]
        print(f"  {what:<12} {1000 * few:9.3f} {1000 * many:9.3f} {many / few:8.2f}")

    await row("usage", volume.usage, ROUNDS)
    await row("used bytes", volume.used_bytes, ROUNDS)
    await row("get quota", volume.get_quota, ROUNDS)
    await row("set quota", lambda vfid: volume.set_quota(vfid, 1 << 41), ROUNDS)
    await row("exact bytes", exact.used_bytes, 3)
    for one in volumes.values():
        one.threads.stop()


def main() -> None:
    """Measure."""
    with tempfile.TemporaryDirectory(prefix="ceph-") as directory:
        cluster = Cluster(Path(directory, "cluster"))
        try:
            cluster.start()
            mount = cluster.mount("one")
            react(lambda reactor: Deferred.fromCoroutine(compare(mount, reactor)))
        finally:
            cluster.stop()


if __name__ == "__main__":
    main()

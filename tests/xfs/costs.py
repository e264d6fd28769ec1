"""
What limits cost with few folders and with many: ``python -m tests.xfs.costs`` prints two tables, as
limits are set by the same process or by the agent. ``embedded`` or ``agent`` asks for one.

Times in user-mode Linux are not those of real machines; what counts is one against the other. It
ends with status 1 when reading a limit or a usage costs more with 2,000 folders than with 10, or
when setting a limit costs more than four times the start of ``/bin/true``.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from twisted.internet.defer import Deferred, gatherResults
from twisted.internet.task import react

from backends.xfs.backend import XFSBackend
from backends.xfs.volume import XFSVolume
from storageproxy import process
from storageproxy.config import VolumeSettings
from storageproxy.testing import bare_id
from tests.engines import uml
from tests.xfs import services

MEBI = 1 << 20
FEW, MANY = 10, 2000
ROUNDS = 200
#: Folders that are made at one time.
TOGETHER = 50
#: How much more may be measured, and be chance.
CHANCE = 1.25
MOST_SPAWNS = 4.0


async def measure(work: Callable[[int], Awaitable[object]], rounds: int = ROUNDS) -> float:
    """The median of the seconds that something takes."""
    times = []
    for number in range(rounds):
        began = time.perf_counter()
        await work(number)
        times.append(time.perf_counter() - began)
    return statistics.median(times)


async def figures(volume: XFSVolume, count: int, reactor: Any) -> dict[str, float]:
    """Grow a volume to so many folders, and measure."""
    made = sum(1 for _ in Path(volume.path).glob("??/??/*"))
    for begin in range(made, count, TOGETHER):
        some = [
            Deferred.fromCoroutine(volume.create_folder(bare_id(number), None, None))
            for number in range(begin, min(begin + TOGETHER, count))
        ]
        await gatherResults(some)
    for number in range(min(count, ROUNDS // 4)):
        await volume.set_quota(bare_id(number), 64 * MEBI)

    async def spawn(number: int) -> None:
        await process.run(reactor, ["/bin/true"], 60.0)

    return {
        "get quota": await measure(lambda n: volume.get_quota(bare_id(n % count))),
        "get usage": await measure(lambda n: volume.used_bytes(bare_id(n % count))),
        "set quota": await measure(
            lambda n: volume.set_quota(bare_id(n % count), (n + 65) * MEBI), ROUNDS // 4
        ),
        "/bin/true": await measure(spawn, ROUNDS // 4),
    }


async def compare(name: str, volume: XFSVolume, reactor: Any) -> bool:
    """Print a table; whether all is as it should be."""
    few, many = [await figures(volume, count, reactor) for count in (FEW, MANY)]
    print(f"{name}: milliseconds with {FEW} and with {MANY} folders, and their ratio")
    passed = True
    for what in few:
        ratio = many[what] / few[what]
        print(f"  {what:<10} {1000 * few[what]:9.3f} {1000 * many[what]:9.3f} {ratio:6.2f}")
        passed &= not what.startswith("get") or ratio <= CHANCE
    spawns = [found["set quota"] / found["/bin/true"] for found in (few, many)]
    print(f"  set quota to /bin/true: {spawns[0]:.2f} and {spawns[1]:.2f}, at most {MOST_SPAWNS:g}")
    return passed and max(spawns) <= MOST_SPAWNS


def options(name: str) -> dict[str, str]:
    """``[volume.NAME.options]``"""
    if name == "agent":
        return {"agent": str(services.agent().socket)}
    registry = services.directory("costs")
    return {"projects": str(registry / "projects"), "projid": str(registry / "projid")}


async def main(reactor: Any, *names: str) -> None:
    """Measure."""
    passed = True
    for name in names or ("embedded", "agent"):
        path = str(next(services.spare_volumes()))
        settings = VolumeSettings(backend="xfs", path=path, options=options(name))
        volume = XFSBackend().volume(name, settings, reactor)
        passed &= await compare(name, volume, reactor)
        volume.threads.stop()
    if not passed:
        sys.exit(1)


if __name__ == "__main__":
    if uml.is_inside():
        react(lambda *args: Deferred.fromCoroutine(main(*args)), sys.argv[1:])
    uml.end_on_signal()
    command = [sys.executable, "-m", "tests.xfs.costs", *sys.argv[1:]]
    sys.exit(uml.run(command, sys.stdout.buffer))

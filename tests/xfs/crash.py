"""
Processes that are killed between two steps of their work on projects.

``python -m tests.xfs.crash`` takes orders as lines of JSON and answers each with one. It makes a
child for each of them, which has loaded all modules already: loading takes seconds in user-mode
Linux, and there are many places to die at.
"""

from __future__ import annotations

import atexit
import gc
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

# Loaded here, so that no child has to.
from twisted.internet import epollreactor  # noqa: F401
from twisted.internet.defer import Deferred

from backends.xfs.commands import XFSQuota
from backends.xfs.commits import Commits
from backends.xfs.interfaces import Limit
from backends.xfs.kernel import Kernel
from backends.xfs.projects import Projects
from backends.xfs.registry import Registry
from backends.xfs.tree import Tree
from backends.xfs.volume import XFSVolume
from storageproxy.threads import VolumeThreads
from storageproxy.vfolder import QuotaScopeID, VFolderID

T = TypeVar("T")


class Outcome(NamedTuple):
    """
    What became of an order.

    :ivar steps: what was done, in order.
    :ivar killed: whether the process was killed then.
    :ivar result: what the operation returned, None when it was killed.
    """

    steps: list[str]
    killed: bool
    result: Any


class Mortal:
    """
    Does what it is told in processes of their own, each of which may be killed at a step: a step of
    the projects, or a call that the volume makes.

    :param volume: the directory of the volume.
    :param registry: the directory of the files ``projects`` and ``projid``.
    :param ids: those that are given.
    """

    def __init__(self, volume: Path, registry: Path, ids: range) -> None:
        self._base = {
            "volume": str(volume),
            "registry": str(registry),
            "ids": [ids.start, ids.stop],
        }

    def do(self, operation: str, *arguments: Any, die_after: int | None = None) -> Outcome:
        """
        Call a method of the volume, or of its projects, and wait.

        :param operation: the name of the method, which only one of them has.
        :param arguments: as there, but paths for the descriptors of directories.
        :param die_after: the number of steps after which it is killed, None to let it live.
        :raises RuntimeError: what it raised.
        """
        process = _nursery()
        assert process.stdin is not None and process.stdout is not None
        order = {"operation": operation, "arguments": list(map(_plain, arguments))}
        process.stdin.write(json.dumps({**self._base, **order, "die": die_after}) + "\n")
        answer = json.loads(process.stdout.readline())
        if answer["error"] is not None:
            raise RuntimeError(answer["error"])
        return Outcome(answer["steps"], answer["killed"], answer["result"])


@cache
def _nursery() -> subprocess.Popen[str]:
    """The process that has the children."""
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.xfs.crash"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        bufsize=1,
    )
    atexit.register(process.wait)
    atexit.register(process.stdin.close)  # type: ignore[union-attr]
    return process


def _plain(argument: Any) -> Any:
    """An argument, for JSON."""
    match argument:
        case Path():
            return {"directory": str(argument)}
        case VFolderID():
            return {"vfid": str(argument)}
        case QuotaScopeID():
            return {"scope": str(argument)}
        case Limit():
            return {"limit": [argument.size, argument.inodes]}
        case _:
            return argument


def _real(argument: Any) -> Any:
    """The argument again."""
    match argument:
        case {"directory": path}:
            return os.open(path, os.O_RDONLY)
        case {"vfid": text}:
            return VFolderID.parse(text)
        case {"scope": text}:
            return QuotaScopeID.parse(text)
        case {"limit": numbers}:
            return Limit(*numbers)
        case _:
            return argument


def _answer(order: dict[str, Any]) -> dict[str, Any]:
    """Have a child do it, and watch what becomes of it."""
    source, target = os.pipe()
    child = os.fork()
    if not child:
        status = 1
        try:
            os.close(source)
            _work(order, partial(os.write, target))
            status = 0
        finally:
            os._exit(status)
    os.close(target)
    with open(source, "rb") as said:
        *steps, result = said.read().decode().split("\n")
    _, status = os.waitpid(child, 0)
    killed = os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL
    if not killed and not result:
        raise RuntimeError(f"{order}: status {os.waitstatus_to_exitcode(status)}")
    answer = {"result": None, "error": None} if killed else json.loads(result)
    return {"steps": steps, "killed": killed, **answer}


class Stepping(VolumeThreads):
    """The threads of a volume, each call of which is a step."""

    step: Callable[[str], None]

    def submit(
        self,
        function: Callable[[], T],
        deadline: float | None,
        discard: Callable[[T], object] | None,
    ) -> Deferred[T]:
        """See :meth:`storageproxy.interfaces.IThreads.submit`."""
        done = super().submit(function, deadline, discard)
        done.addCallback(partial(self._stepped, "call of the volume"))
        return done

    def _stepped(self, name: str, result: T) -> T:
        self.step(name)
        return result


def _work(order: dict[str, Any], say: Callable[[bytes], object]) -> None:
    """In the child: say each step in a line, and the result after the last one."""
    from twisted.internet import reactor

    taken = 0

    def step(name: str) -> None:
        nonlocal taken
        say(f"{name}\n".encode())
        taken += 1
        if taken == order["die"]:
            os.kill(os.getpid(), signal.SIGKILL)

    def end(result: Any = None, error: str | None = None) -> None:
        say(json.dumps({"result": result, "error": error}, default=str).encode())
        reactor.stop()

    threads = VolumeThreads(reactor, "projects", size=4, deadline=60.0)
    directory = Path(order["registry"])
    registry = Registry(str(directory / "projects"), str(directory / "projid"), step)
    projects = Projects(
        Tree(order["volume"], Kernel()),
        Commits(registry, threads),
        XFSQuota(reactor),
        threads,
        range(*order["ids"]),
        step,
    )
    stepping = Stepping(reactor, "volume", size=4, deadline=60.0)
    stepping.step = step
    volume = XFSVolume("test", order["volume"], "", stepping, reactor, lambda: projects, Kernel())
    name = order["operation"]
    work = getattr(volume if hasattr(volume, name) else projects, name)
    reactor.callWhenRunning(
        lambda: Deferred.fromCoroutine(work(*map(_real, order["arguments"]))).addCallbacks(
            end, lambda failure: end(error=failure.getTraceback())
        )
    )
    reactor.run()


if __name__ == "__main__":
    # Children would copy what the collector touches.
    gc.freeze()
    gc.disable()
    for line in sys.stdin:
        print(json.dumps(_answer(json.loads(line))), flush=True)

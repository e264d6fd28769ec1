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
from typing import Any, NamedTuple

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
from storageproxy.threads import VolumeThreads


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
    Does what it is told in processes of their own, each of which may be killed at a step.

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
        Call a method of :class:`backends.xfs.interfaces.IProjects`, and wait.

        :param arguments: paths for directories, and numbers of bytes for limits.
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
    return str(argument) if isinstance(argument, Path) else argument


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

    threads = VolumeThreads(reactor, "test", size=4, deadline=60.0, long_calls=1)
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
    arguments = [
        os.open(one, os.O_RDONLY) if isinstance(one, str) else one for one in order["arguments"]
    ]
    # A number after a directory is a limit.
    if len(arguments) == 2:
        arguments[1] = Limit(arguments[1])
    work = getattr(projects, order["operation"])
    reactor.callWhenRunning(
        lambda: Deferred.fromCoroutine(work(*arguments)).addCallbacks(
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

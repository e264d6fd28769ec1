"""
The manager API: each kind of call by eight callers, and by two worker processes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import count, repeat
from uuid import uuid4

from accounting import tree
from attrs import define, field, frozen
from bench import Bench, remove
from clients import Conversation, run, single
from scenarios import OURS, Measurement, Scenario, Target, rate
from servers import Proxy, StorageProxy

CALLERS = 8
ENTRIES = 50


@frozen
class Folder:
    """A vfolder with some files."""

    vfid: str

    @property
    def params(self) -> dict[str, object]:
        """What names it in a call."""
        return {"volume": "none", "vfid": self.vfid}


def listing(proxy: Proxy, folder: Folder) -> Iterator[Conversation]:
    """Lists of a directory with 50 entries."""
    one = proxy.rpc("POST", "/folder/file/list", {**folder.params, "relpath": "."}, ENTRIES * 100)
    return (single(one) for _ in repeat(None))


def tokens(proxy: Proxy, folder: Folder) -> Iterator[Conversation]:
    """Tokens for a download."""
    params = {**folder.params, "relpath": "entry-1"}
    one = proxy.rpc("POST", "/folder/file/download", params, 100)
    return (single(one) for _ in repeat(None))


def usage(proxy: Proxy, folder: Folder) -> Iterator[Conversation]:
    """The size of a vfolder with 50 files."""
    one = proxy.rpc("GET", "/folder/usage", folder.params, 20)
    return (single(one) for _ in repeat(None))


def pairs(proxy: Proxy, folder: Folder) -> Iterator[Conversation]:
    """Vfolders that are made and deleted."""
    for _ in repeat(None):
        params = {"volume": "none", "vfid": str(uuid4())}
        yield single(
            proxy.rpc("POST", "/folder/create", params),
            proxy.rpc("POST", "/folder/delete", params),
        )


def directories(proxy: Proxy, folder: Folder) -> Iterator[Conversation]:
    """Directories in one vfolder."""
    for number in count():
        params = {**folder.params, "relpath": f"made/directory-{number}"}
        yield single(proxy.rpc("POST", "/folder/file/mkdir", params))


@define(kw_only=True, eq=False)
class Call(Scenario):
    """
    One kind of call, from eight callers that each wait for the answer.

    :param calls: the calls, without end.
    """

    calls: Callable[[Proxy, Folder], Iterator[Conversation]]
    _folder: Folder = field(init=False)

    def prepare(self, bench: Bench) -> None:
        """A vfolder with 50 files."""
        vfid, path = bench.folder()
        for number in range(ENTRIES):
            (path / f"entry-{number}").write_bytes(b"x")
        self._folder = Folder(vfid)

    def measure(self, bench: Bench, who: str, daemon: StorageProxy) -> Measurement:
        """What is deleted is gone when the trash is empty; that is waited for."""
        proxy = daemon if who == OURS else bench.servers[who]
        assert isinstance(proxy, Proxy)
        folder = self._folder
        try:
            return rate(run(CALLERS, self.calls(proxy, folder), bench.sizes.seconds))
        finally:
            remove(bench.ours.path("none", folder.vfid) / "made")


@define(kw_only=True, eq=False)
class TwoWorkers(Call):
    """The same from a daemon of two processes, beside the one of one."""

    @contextmanager
    def daemon(self, bench: Bench) -> Iterator[StorageProxy]:
        """It runs for the measurement only."""
        daemon = bench.proxy("two-workers", 2)
        try:
            daemon.start()
            if len(tree(daemon.pid)) == 1:
                bench.note("This daemon is one process, whatever `num-proc` says.")
            yield daemon
        finally:
            daemon.stop()

    def measure(self, bench: Bench, who: str, daemon: StorageProxy) -> Measurement:
        """With 16 callers, so that both have some whatever the kernel's choice."""
        proxy = bench.ours if who == "tool" else daemon
        load = run(2 * CALLERS, self.calls(proxy, self._folder), bench.sizes.seconds)
        return rate(load)


SCENARIOS: list[Scenario] = [
    Call(
        name="list",
        title=f"list of {ENTRIES} entries",
        unit="/s",
        calls=listing,
        peers=("original",),
        targets=(Target("original", 6, 10),),
    ),
    Call(
        name="token",
        title="token for a download",
        unit="/s",
        calls=tokens,
        peers=("original",),
        targets=(Target("original", 2),),
    ),
    Call(
        name="usage",
        title=f"usage of a folder of {ENTRIES} files",
        unit="/s",
        calls=usage,
        peers=("original",),
    ),
    Call(
        name="create-delete",
        title="create and delete, pairs",
        unit="/s",
        calls=pairs,
        peers=("original",),
        targets=(Target("original", 2),),
    ),
    Call(
        name="mkdir",
        title="mkdir",
        unit="/s",
        calls=directories,
        peers=("original",),
    ),
    TwoWorkers(
        name="workers-list",
        title=f"list of {ENTRIES} entries, two workers, 16 callers",
        unit="/s",
        calls=listing,
        peers=("tool",),
        tool="one worker",
        targets=(Target("tool", 1.6),),
    ),
    TwoWorkers(
        name="workers-token",
        title="token for a download, two workers, 16 callers",
        unit="/s",
        calls=tokens,
        peers=("tool",),
        tool="one worker",
        targets=(Target("tool", 1.6),),
    ),
]

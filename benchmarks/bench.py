"""
The bench that everything is measured on: the volumes, what lies on them, and the servers.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar
from uuid import uuid4

from accounting import Account, Cost
from attrs import define, field, frozen
from heartbeat import Record
from servers import (
    HERE,
    Nginx,
    NotHere,
    Original,
    PlainTwisted,
    Server,
    StorageProxy,
    original_python,
)

MiB = 1024 * 1024

_T = TypeVar("_T")

#: The volumes: one for each durability that is measured, on the same disk.
SETTINGS = {"none": 'durability = "none"', "patch": 'durability = "patch"'}

_SETTLE = 600.0


@frozen
class Sizes:
    """
    How much is measured.

    :param big: bytes of the file that is downloaded.
    :param upload: bytes of one upload.
    :param chunked: bytes of the upload in chunks of 1 MiB.
    :param members: files of 1 MiB in an archive.
    :param tree_files: small files in the big tree; half of them go into an archive.
    :param tree_directories: directories of the big tree.
    :param seconds: how long each load of small requests lasts.
    :param readers: connections that read slowly.
    :param idle: connections that do nothing.
    """

    big: int = 1024 * MiB
    upload: int = 512 * MiB
    chunked: int = 128 * MiB
    members: int = 500
    tree_files: int = 200_000
    tree_directories: int = 1000
    seconds: float = 1.5
    readers: int = 200
    idle: int = 2000


QUICK = Sizes(16 * MiB, 8 * MiB, 4 * MiB, 8, 400, 4, 0.15, 20, 100)


@define
class Bench:
    """
    :param directory: for the volumes; on the disk that is measured.
    :param sizes: how much is measured.
    :param cache: the directory that keeps the original between runs.
    :param install: whether the original may be installed into it.
    :param say: is told what goes on.
    """

    directory: Path
    sizes: Sizes
    cache: Path
    install: bool
    say: Callable[[str], None]
    volumes: dict[str, Path] = field(factory=dict)
    servers: dict[str, Server] = field(factory=dict)
    missing: dict[str, str] = field(factory=dict)
    notes: list[str] = field(factory=list)
    source: Path = field(init=False)
    _made: dict[object, Any] = field(factory=dict)
    _bare: Record = field(init=False)
    _stack: ExitStack = field(factory=ExitStack)

    def __enter__(self) -> Bench:
        try:
            self._open()
        except BaseException:
            self._stack.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def _open(self) -> None:
        for name in SETTINGS:
            self.add_volume(name)
        self.source = self.directory / "source"
        write_file(self.source, 4 * self.sizes.upload)

    def add_volume(self, name: str, path: Path | None = None) -> Path:
        """Make a volume, before the servers are started; with a path where one is mounted."""
        self.volumes[name] = path or self.directory / name
        self.volumes[name].mkdir(exist_ok=True)
        return self.volumes[name]

    def enter(self, resource: object) -> None:
        """Keep something until the bench is cleared."""
        self._stack.enter_context(resource)  # type: ignore[arg-type]

    def note(self, text: str) -> None:
        """Something that the reader of the report has to know."""
        if text not in self.notes:
            self.notes.append(text)

    # ---- servers

    def start(self, wanted: set[str]) -> None:
        """
        Start the daemon and its peers.

        :param wanted: names of peers that somebody asks for; others are not started.
        """
        bare = self.directory / "bare"
        self._bare = Record(bare)
        self._run(_Bare(self.directory / "sleeper", bare))
        self._run(self.proxy("ours"))
        peers: dict[str, Callable[[], Server]] = {
            "nginx": lambda: Nginx(self.directory / "nginx", self.volumes["none"]),
            "twisted": lambda: PlainTwisted(self.directory / "twisted", self.volumes["none"]),
            "original": lambda: Original(
                self.directory / "original",
                self.volumes,
                original_python(self.cache, self.install),
            ),
        }
        for name, make in peers.items():
            if name not in wanted:
                continue
            self.say(f"starting {name}")
            try:
                self._run(make())
            except (NotHere, RuntimeError) as error:
                self.missing[name] = str(error).strip()
                self.say(f"{name}: not here: {error}")

    def _run(self, server: Server) -> None:
        self._stack.callback(server.stop)
        server.start()
        self.servers[server.name] = server

    def proxy(self, name: str, processes: int = 1) -> StorageProxy:
        """
        A daemon on the volumes of this bench; it is not started.

        :param name: of its directory.
        """
        return StorageProxy(self.directory / name, self.volumes, SETTINGS, processes)

    @property
    def ours(self) -> StorageProxy:
        """The daemon."""
        server = self.servers["ours"]
        assert isinstance(server, StorageProxy)
        return server

    @contextmanager
    def account(self, server: StorageProxy) -> Iterator[list[Cost]]:
        """What a daemon costs within the block; the list has it afterwards."""
        costs: list[Cost] = []
        account = Account(server.pid, server.hearts, self._bare)
        yield costs
        costs.append(account.close())

    # ---- between measurements

    def settle(self) -> None:
        """Wait until nothing is left in any trash, and nothing waits to be written to disk."""
        for name in self.volumes:
            self.empty_trash(name)
        self.sync()

    def sync(self) -> None:
        """Have what was written before on disk."""
        subprocess.run(["sync", "-f", str(self.directory)], check=True)

    def empty_trash(self, volume: str) -> None:
        """Wait until a volume's trash is empty."""
        trash = self.volumes[volume] / ".storage-proxy" / "trash"
        deadline = time.monotonic() + _SETTLE
        while True:
            with suppress(FileNotFoundError):
                if os.listdir(trash):
                    if time.monotonic() > deadline:
                        raise RuntimeError(f"{trash} is not emptied")
                    time.sleep(0.005)
                    continue
            return

    # ---- data

    def once(self, make: Callable[[Bench], _T]) -> _T:
        """What several scenarios are measured on, made for the first that asks."""
        if make not in self._made:
            self._made[make] = make(self)
        made: _T = self._made[make]
        return made

    def folder(self, volume: str = "none") -> tuple[str, Path]:
        """Make a vfolder: its id, and where it is."""
        vfid = self.ours.create(volume)
        return vfid, self.ours.path(volume, vfid)

    def new_path(self, volume: str = "none") -> tuple[str, Path]:
        """An id that is not taken, and where its vfolder would be."""
        vfid = str(uuid4())
        return vfid, self.ours.path(volume, vfid)


class _Bare(Server):
    """The process that only sleeps."""

    name = "bare"

    def __init__(self, directory: Path, record: Path) -> None:
        super().__init__(directory)
        self._record = record

    def command(self) -> list[str]:
        return [sys.executable, str(HERE / "heartbeat.py"), str(self._record)]

    def ports(self) -> list[int]:
        return []


def write_file(path: Path, size: int) -> None:
    """A file of bytes that no disk can compress, in the page cache."""
    block = os.urandom(min(size, MiB))
    with path.open("wb") as file:
        for _ in range(size // len(block)):
            file.write(block)
        file.write(block[: size % len(block)])


def write_tree(path: Path, files: int, directories: int, size: int = 1024) -> None:
    """Small files in two levels of directories: ``first/…`` and ``second/…`` with half of them."""
    content = os.urandom(size)
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL
    for half in ("first", "second"):
        for number in range(directories // 2):
            directory = path / half / f"directory-{number:04}"
            directory.mkdir(parents=True)
            parent = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
            for one in range(files // directories):
                file = os.open(f"file-{one:04}.dat", flags, 0o644, dir_fd=parent)
                os.write(file, content)
                os.close(file)
            os.close(parent)


def remove(path: Path) -> None:
    """Remove a file or a tree that may be there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def timed(command: list[str]) -> float:
    """Seconds that a command takes."""
    began = time.perf_counter()
    subprocess.run(command, check=True, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    return time.perf_counter() - began

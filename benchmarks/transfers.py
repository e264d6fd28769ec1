"""
Downloads, uploads and archives.
"""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from itertools import count, repeat

from attrs import define, field
from bench import Bench, MiB, remove, timed, write_file
from clients import Conversation, Request, request, run, single
from scenarios import OURS, Measurement, Scenario, Target, rate, speed
from servers import Proxy, StorageProxy, Web

SMALL = 4096

_TUS = [("Tus-Resumable", "1.0.0"), ("Content-Type", "application/offset+octet-stream")]


class Files:
    """Files of a vfolder, and how each server is asked for them."""

    def __init__(self, bench: Bench) -> None:
        self._bench = bench
        self.vfid, self.path = bench.folder()

    def target(self, server: Proxy | Web, relpath: str) -> tuple[int, str]:
        """The port and the target of a GET."""
        if isinstance(server, Proxy):
            return server.download("none", self.vfid, relpath)
        return server.port, f"/{(self.path / relpath).relative_to(server.served)}"


def server(bench: Bench, who: str, daemon: StorageProxy) -> Proxy | Web:
    """Who is to be measured."""
    found = daemon if who == OURS else bench.servers[who]
    assert isinstance(found, Proxy | Web)
    return found


@define(kw_only=True, eq=False)
class Download(Scenario):
    """
    A big file, by several at one time.

    :param connections: how many.
    """

    connections: int
    _files: Files = field(init=False)

    def prepare(self, bench: Bench) -> None:
        """The file, in the page cache."""
        self._files = bench.once(big_file)

    def measure(self, bench: Bench, who: str, daemon: StorageProxy) -> Measurement:
        """Each fetches the whole file."""
        return fetch_big(bench, self._files, server(bench, who, daemon), self.connections)


def big_file(bench: Bench) -> Files:
    """A vfolder with one big file, ``big``."""
    files = Files(bench)
    write_file(files.path / "big", bench.sizes.big)
    return files


def fetch_big(bench: Bench, files: Files, whom: Proxy | Web, connections: int) -> Measurement:
    """Download it by some connections at one time."""
    port, target = files.target(whom, "big")
    one = request(port, "GET", target, least=bench.sizes.big)
    load = run(connections, (single(one) for _ in range(connections)))
    return speed(load, bench.sizes.big, connections)


@define(kw_only=True, eq=False)
class Ranges(Scenario):
    """4 KiB somewhere in a big file, again and again on kept-alive connections."""

    _files: Files = field(init=False)

    def prepare(self, bench: Bench) -> None:
        """The file."""
        self._files = bench.once(big_file)

    def measure(self, bench: Bench, who: str, daemon: StorageProxy) -> Measurement:
        """Eight at one time."""
        port, target = self._files.target(server(bench, who, daemon), "big")
        places = random.Random(1)
        requests = []
        for _ in range(256):
            first = places.randrange(bench.sizes.big // SMALL) * SMALL
            value = f"bytes={first}-{first + SMALL - 1}"
            requests.append(request(port, "GET", target, [("Range", value)], least=SMALL))
        load = run(8, (single(places.choice(requests)) for _ in repeat(None)), bench.sizes.seconds)
        return _bounded(rate(load), load.received, load.done * SMALL)


def _bounded(measurement: Measurement, received: int, expected: int) -> Measurement:
    """A whole file in the place of a part of it is an error too."""
    if received > expected and not measurement.errors:
        measurement.errors.append(f"{received} bytes in the place of {expected}")
    return measurement


@define(kw_only=True, eq=False)
class SmallFiles(Scenario):
    """Files of 4 KiB on kept-alive connections."""

    _files: Files = field(init=False)

    def prepare(self, bench: Bench) -> None:
        """Some files."""
        files = Files(bench)
        for number in range(64):
            write_file(files.path / f"small-{number}", SMALL)
        self._files = files

    def measure(self, bench: Bench, who: str, daemon: StorageProxy) -> Measurement:
        """Eight at one time."""
        whom = server(bench, who, daemon)
        requests = []
        for number in range(64):
            port, target = self._files.target(whom, f"small-{number}")
            requests.append(request(port, "GET", target, least=SMALL))
        load = run(8, (single(requests[one % 64]) for one in count()), bench.sizes.seconds)
        return rate(load)


class Sessions:
    """
    Uploads to a server, and what has become of them on disk.

    :param volume: of the server.
    """

    def __init__(self, bench: Bench, whom: Proxy | Web, volume: str) -> None:
        self._whom = whom
        self._volume = volume
        self._source = os.open(bench.source, os.O_RDONLY)
        if isinstance(whom, Proxy):
            self._vfid, self._path = bench.folder(volume)
        else:
            self._path = whom.bodies

    def upload(self, name: str, size: int, chunk: int) -> Conversation:
        """A file, in pieces; the session is opened beforehand, as the Manager does."""
        if isinstance(self._whom, Proxy):
            token = self._whom.call("POST", "/folder/file/upload", self._session(name, size))
            return single(*self._patches(token["token"], size, chunk))
        file = (self._source, 0, size)
        return single(request(self._whom.port, "PUT", f"/bodies/{name}", file=file))

    def whole(self, name: str, size: int) -> Conversation:
        """A session and its one PATCH."""
        assert isinstance(self._whom, Proxy)
        answer = yield self._whom.rpc(
            "POST", "/folder/file/upload", self._session(name, size), keep=True
        )
        # Quicker than a parser, and the same for everyone.
        token = answer.split(b'"')[3].decode()
        yield from self._patches(token, size, size)

    def _session(self, name: str, size: int) -> dict[str, object]:
        return {"volume": self._volume, "vfid": self._vfid, "relpath": name, "size": size}

    def _patches(self, token: str, size: int, chunk: int) -> Iterator[Request]:
        assert isinstance(self._whom, Proxy)
        for offset in range(0, size, chunk):
            length = min(chunk, size - offset)
            yield request(
                self._whom.client_port,
                "PATCH",
                f"/upload?token={token}",
                [*_TUS, ("Upload-Offset", str(offset))],
                file=(self._source, offset, length),
            )

    def check(self, names: list[str], size: int) -> list[str]:
        """Complain about each file that is not there as a whole."""
        wrong = []
        for name in names:
            try:
                found = (self._path / name).stat().st_size
            except FileNotFoundError:
                found = -1
            if found != size:
                wrong.append(f"{name} has {found} bytes instead of {size}")
        return wrong

    def close(self) -> None:
        """Upload no more."""
        os.close(self._source)

    def remove(self, names: list[str]) -> None:
        """Take everything away."""
        if isinstance(self._whom, Proxy):
            remove(self._path)
        else:
            for name in names:
                remove(self._path / name)


@define(kw_only=True, eq=False)
class Upload(Scenario):
    """
    Big files, by several at one time.

    :param connections: how many.
    :param volume: with the durability that is meant.
    :param chunk: bytes of a PATCH, 0 for the whole file.
    """

    connections: int
    volume: str
    chunk: int = 0

    def measure(self, bench: Bench, who: str, daemon: StorageProxy) -> Measurement:
        """Each uploads a file of its own; ``dd`` writes one of the size of all."""
        size = bench.sizes.chunked if self.chunk else bench.sizes.upload
        if who == "tool":
            return _dd(bench, self.volume, size * self.connections)
        sessions = Sessions(bench, server(bench, who, daemon), self.volume)
        names = [f"upload-{number}" for number in range(self.connections)]
        try:
            # Sessions are opened before the clock is started.
            uploads = [sessions.upload(name, size, self.chunk or size) for name in names]
            found = speed(run(self.connections, uploads), size, self.connections)
            return Measurement(found.value, found.errors + sessions.check(names, size))
        finally:
            sessions.close()
            sessions.remove(names)


def _dd(bench: Bench, volume: str, size: int) -> Measurement:
    target = bench.volumes[volume] / "dd"
    try:
        seconds = timed(
            ["dd", f"if={bench.source}", f"of={target}", "bs=1M", f"count={size}"]
            + ["iflag=count_bytes", "conv=fdatasync", "status=none"]
        )
        whole = target.stat().st_size == size
    finally:
        remove(target)
    return Measurement(size / 1e6 / seconds, [] if whole else ["dd wrote less"])


@define(kw_only=True, eq=False)
class SmallUploads(Scenario):
    """Files of 4 KiB: a session by RPC, and one PATCH."""

    def measure(self, bench: Bench, who: str, daemon: StorageProxy) -> Measurement:
        """Eight at one time."""
        sessions = Sessions(bench, server(bench, who, daemon), "none")
        names: list[str] = []

        def uploads() -> Iterator[Conversation]:
            for number in count():
                names.append(f"small-{number}")
                yield sessions.whole(names[-1], SMALL)

        try:
            load = run(8, uploads(), bench.sizes.seconds)
            found = rate(load)
            short = sessions.check(names, SMALL)
            # An upload that was answered with an error has left nothing, and is counted already.
            return Measurement(found.value, found.errors + short[len(found.errors) :])
        finally:
            # The files stay until all is measured: with each file that is made, ext4 passes over
            # all inodes one by one that were freed nearby in the minutes before (recently_deleted
            # in fs/ext4/ialloc.c), and the next round would measure that.
            sessions.close()


@define(kw_only=True, eq=False)
class Archive(Scenario):
    """A folder of big files as a zip archive, beside the download of one big file."""

    _files: Files = field(init=False)
    _big: Files = field(init=False)

    def prepare(self, bench: Bench) -> None:
        """The members."""
        files = Files(bench)
        (files.path / "members").mkdir()
        for number in range(bench.sizes.members):
            write_file(files.path / "members" / f"file-{number:03}.bin", MiB)
        self._files = files
        self._big = bench.once(big_file)

    def measure(self, bench: Bench, who: str, daemon: StorageProxy) -> Measurement:
        """The whole archive, or the big file."""
        if who == "tool":
            return fetch_big(bench, self._big, daemon, 1)
        port, target = self._files.target(server(bench, who, daemon), "members")
        size = bench.sizes.members * MiB
        one = request(port, "GET", f"{target}&archive=true", least=size)
        return speed(run(1, [single(one)]), size, 1)


SCENARIOS: list[Scenario] = [
    Download(
        name="download-1",
        title="download of 1 GiB, 1 connection",
        unit="MB/s",
        connections=1,
        peers=("nginx", "twisted", "original"),
        targets=(Target("nginx", 0.9), Target("twisted", 2.5)),
    ),
    Download(
        name="download-8",
        title="download of 1 GiB, 8 connections",
        unit="MB/s",
        connections=8,
        peers=("nginx", "twisted", "original"),
        targets=(Target("nginx", 0.9), Target("twisted", 2.5)),
    ),
    Ranges(
        name="ranges",
        title="ranges of 4 KiB, kept alive, 8 connections",
        unit="/s",
        peers=("nginx", "twisted", "original"),
        targets=(Target("original", 2),),
    ),
    SmallFiles(
        name="small-files",
        title="files of 4 KiB, kept alive, 8 connections",
        unit="/s",
        peers=("nginx", "twisted", "original"),
        targets=(Target("original", 2),),
    ),
    Upload(
        name="upload-1",
        title="upload of 512 MiB, 1 connection, durability none",
        unit="MB/s",
        connections=1,
        volume="none",
        peers=("nginx", "twisted", "original"),
        targets=(Target("nginx", 1),),
    ),
    Upload(
        name="upload-4",
        title="upload of 512 MiB, 4 connections, durability none",
        unit="MB/s",
        connections=4,
        volume="none",
        peers=("nginx", "twisted", "original"),
        targets=(Target("nginx", 1),),
    ),
    Upload(
        name="upload-1-patch",
        title="upload of 512 MiB, 1 connection, durability patch",
        unit="MB/s",
        connections=1,
        volume="patch",
        peers=("tool",),
        tool="dd conv=fdatasync",
        targets=(Target("tool", 0.9),),
    ),
    Upload(
        name="upload-4-patch",
        title="upload of 512 MiB, 4 connections, durability patch",
        unit="MB/s",
        connections=4,
        volume="patch",
        peers=("tool",),
        tool="dd conv=fdatasync",
        targets=(Target("tool", 0.9),),
    ),
    Upload(
        name="chunks",
        title="upload of 128 MiB in chunks of 1 MiB, durability none",
        unit="MB/s",
        connections=1,
        volume="none",
        chunk=MiB,
        peers=("original",),
    ),
    Upload(
        name="chunks-patch",
        title="upload of 128 MiB in chunks of 1 MiB, durability patch",
        unit="MB/s",
        connections=1,
        volume="patch",
        chunk=MiB,
    ),
    SmallUploads(
        name="small-uploads",
        title="uploads of 4 KiB with their sessions, 8 callers, durability none",
        unit="/s",
        peers=("original",),
        targets=(Target("original", 2),),
    ),
    Archive(
        name="archive",
        title="archive of 500 files of 1 MiB",
        unit="MB/s",
        peers=("tool",),
        tool="our download, 1 connection",
        targets=(Target("tool", 0.5),),
    ),
]

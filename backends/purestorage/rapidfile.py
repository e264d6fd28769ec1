# -*- test-case-name: tests.test_rapidfile -*-
"""
The commands of the RapidFile Toolkit, which work on a directory in parallel: which of them there
are, their command lines, and what they write.

No manual of theirs is public. The command lines and formats are those of the toolkits 1.0 and 2.1
as their users call them; that a command here does what is expected of it is tried before it is
used (:mod:`backends.purestorage.probe`).
"""

from __future__ import annotations

import json
import os
import re
import stat
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from typing import Any, NamedTuple

from attrs import field, frozen
from twisted.internet.defer import Deferred

from storageproxy import launch, process
from storageproxy.beneath import Directory
from storageproxy.process import CommandFailed, Confinement, Outcome
from storageproxy.trees import Step, Usage, unwatched

#: List a directory; count a tree; remove a tree.
LIST, COUNT, REMOVE = "pls", "pdu", "prm"
COMMANDS = (LIST, COUNT, REMOVE)

#: Commands that are looked for, to be told of, and not used: copy a tree, by either name; find.
OTHERS = ("pcp", "pcopy", "pfind")

#: Seconds that a command may take to tell its version.
VERSION_DEADLINE = 10.0

#: Seconds that a command may do nothing: less than a call on the volume may take, so that there is
#: time left to do without it.
SILENCE = 5.0

#: Bytes at most of what a command says of one file: a path of 4096 bytes, each escaped, and more.
MAX_RECORD = 64 * 1024

#: Where software is.
SOFTWARE = ("/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/opt")

_VERSION = re.compile(rb"(?:version )?([a-z]+) \(RapidFile(?: Toolkit)?\) (([12])\.\S+)\s*")
_COUNTED = re.compile(rb"([0-9]{1,20})[ \t]+(.*)", re.DOTALL)
#: Types of files by what is said of them: as in st_mode, or its octal digits read as decimal ones.
_TYPES = {
    said: number
    for number in (
        stat.S_IFREG,
        stat.S_IFDIR,
        stat.S_IFLNK,
        stat.S_IFIFO,
        stat.S_IFSOCK,
        stat.S_IFCHR,
        stat.S_IFBLK,
    )
    for said in (number, int(f"{number:o}"))
}


class Status(NamedTuple):
    """What a listing says of an entry: see :class:`storageproxy.files.Status`."""

    st_mode: int
    st_size: int
    st_mtime_ns: int
    st_ctime_ns: int


def permissions(said: int) -> int:
    """Permissions that are told as bits, with or without the type of the file."""
    return said & 0o7777


def octal_permissions(said: int) -> int:
    """Permissions that are told as octal digits, such as 644."""
    return int(str(said), 8) & 0o7777


@frozen
class Toolkit:
    """
    The commands on a path.

    :param reactor: where commands are run.
    :param versions: of those that there are.
    :param software: directories that commands may need to read.
    :param environ: of the daemon.
    :param silence: seconds that a command may do nothing.
    """

    reactor: Any
    versions: Mapping[str, str]
    software: Sequence[str] = SOFTWARE
    environ: Mapping[str, str] = field(factory=lambda: os.environ)
    silence: float = SILENCE

    def scan(self, directory: Directory, permissions: Callable[[int], int]) -> Records:
        """
        The entries of a directory. Blocks; to be closed.

        The command looks at what is in its working directory and no further, so there is nothing
        that could lead it elsewhere.

        :param permissions: how they are told.
        :raises CommandFailed: when these may not be all.
        """
        new = not self.versions[LIST].startswith("1.")
        argv = (LIST, "--jsonlines" if new else "--json", ".")
        confinement = Confinement(self.software) if launch.confinable() else None
        with closing(self._stream(argv, directory, confinement)) as output:
            for records in split(output, b"\n"):
                for record in records:
                    yield parse_entry(record, permissions)

    def count(self, directory: Directory, step: Step = unwatched) -> Usage:
        """
        Count files and links, and their bytes, as :func:`storageproxy.trees.usage`. Blocks.

        :param step: called often; what it raises ends the command.
        :raises CommandFailed: when these may not be all.
        """
        new = not self.versions[COUNT].startswith("1.")
        argv = (COUNT, "-0", "-b", "-a", *(() if new else ("-s",)), ".")
        confinement = Confinement(self.software)
        with closing(self._stream(argv, directory, confinement)) as output:
            return parse_counts(split(output, b"\0"), step)

    def remove(self, directory: Directory, name: str, step: Step = unwatched) -> None:
        """
        Remove what is in a directory by some name, with all that is in it. Blocks.

        :param step: called often; what it raises ends the command.
        :raises CommandFailed: when there may be something left.
        """
        confinement = Confinement(self.software, removal=True)
        argv = (REMOVE, "-r", f"./{name}")
        with closing(self._stream(argv, directory, confinement)) as output:
            for _ in output:
                step(0)

    def _stream(
        self, argv: Sequence[str], directory: Directory, confinement: Confinement | None
    ) -> Generator[bytes, None, None]:
        return process.stream(
            self.reactor, argv, directory.descriptor, self.silence, confinement, self.environ
        )


Records = Generator[tuple[str, Status], None, None]


async def find(reactor: Any, environ: Mapping[str, str]) -> tuple[dict[str, str], list[str]]:
    """
    Ask all commands for their versions.

    :return: the versions by the names of the commands, and complaints about those of
        :data:`COMMANDS` that cannot be used.
    """
    asked = [(name, ask(reactor, name, environ)) for name in (*COMMANDS, *OTHERS)]
    found: dict[str, str] = {}
    complaints: list[str] = []
    for name, answer in asked:
        try:
            outcome = await answer
        except CommandFailed as error:
            if name in COMMANDS:
                complaints.append(str(error))
            continue
        version = parse_version(name, outcome.output)
        if version is not None:
            found[name] = version
        elif name in COMMANDS:
            said = outcome.output.decode("utf-8", "replace").partition("\n")[0]
            complaints.append(f"{name}: it is no RapidFile Toolkit 1 or 2: {said[:100]!r}")
    return found, complaints


def ask(reactor: Any, name: str, environ: Mapping[str, str]) -> Deferred[Outcome]:
    """Ask a command for its version."""
    return process.run(reactor, (name, "--version"), VERSION_DEADLINE, environ=environ)


def parse_version(name: str, said: bytes) -> str | None:
    """
    The version in what a command says of itself.

    :return: None when it is none of those that are known here.
    """
    match = _VERSION.fullmatch(said.partition(b"\n")[0])
    if match is None or match[1] != name.encode():
        return None
    return match[2].decode("ascii", "replace")


def split(chunks: Iterable[bytes], end: bytes) -> Iterator[list[bytes]]:
    """
    Records of what comes in pieces.

    :param end: what each record ends with, also the last one.
    :return: lists of them, also empty ones when there was nothing new.
    :raises CommandFailed: when one is too long, or has no end.
    """
    rest = b""
    for data in chunks:
        *records, rest = (rest + data).split(end)
        if len(rest) > MAX_RECORD:
            raise CommandFailed(f"a record is longer than {MAX_RECORD} bytes")
        yield records
    if rest:
        raise CommandFailed(f"it breaks off: {rest[-100:]!r}")


def parse_entry(record: bytes, permissions: Callable[[int], int]) -> tuple[str, Status]:
    """
    One line of a listing: the name and what it is.

    :param record: JSON, whose strings may have bytes that are no UTF-8.
    :raises CommandFailed: when it is anything else.
    """
    try:
        entry = json.loads(record.decode("utf-8", "surrogateescape"))
        name = entry["path"].rpartition("/")[2]
        # Surrogates that stand for no byte are no name.
        if not name or "\0" in name or name in (".", "..") or not os.fsencode(name):
            raise ValueError(name)
        return name, Status(
            _TYPES[entry["filetype"]] | permissions(entry["mode"]),
            int(entry["size"]),
            _nanoseconds(entry["mtime"]),
            _nanoseconds(entry["ctime"]),
        )
    except (ValueError, KeyError, TypeError, AttributeError, ArithmeticError, RecursionError):
        raise CommandFailed(f"this is no entry: {record[:200]!r}") from None


def _nanoseconds(seconds: float) -> int:
    # A float has 52 bits: of a time of our days that is a quarter of a microsecond.
    return seconds * 10**9 if isinstance(seconds, int) else round(seconds * 10**6) * 1000


def parse_counts(records: Iterable[list[bytes]], step: Step) -> Usage:
    """
    Add up what is told of each file. The directory itself is told as well, by which it is known
    that nothing is missing.

    :raises CommandFailed: when it is not, or when a record cannot be read.
    """
    files = used_bytes = whole = 0
    for batch in records:
        step(0)
        for record in batch:
            match = _COUNTED.fullmatch(record)
            if match is None:
                raise CommandFailed(f"this is no size of a file: {record[:200]!r}")
            if match[2] in (b".", b"./"):
                whole += 1
                continue
            size = int(match[1])
            files += 1
            used_bytes += size
            step(1, size)
    if whole != 1:
        raise CommandFailed("the directory itself is not told, so there may be more")
    return Usage(files, used_bytes)

# -*- test-case-name: tests.test_rapidfile -*-
"""
Whether the commands of a RapidFile Toolkit do on a volume what is expected of them.

They are tried in a directory of our own, whose path is longer than any that a program can open: a
command that finds it works in the directory that is open, and one that would look for it by a path,
at whatever lies there by then, does not find it. What is in there has names with any bytes.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import TypeVar
from uuid import uuid4

from attrs import frozen

from backends.purestorage.rapidfile import (
    COUNT,
    LIST,
    REMOVE,
    Toolkit,
    octal_permissions,
    permissions,
)
from storageproxy import files, launch, removal, trees
from storageproxy.beneath import Directory
from storageproxy.process import CommandFailed
from storageproxy.trees import Step, unwatched

T = TypeVar("T")

#: Where it is tried, in the root of the volume.
PLACE = ".storage-proxy/probes"

#: Directories in one another, and the bytes of their names: more than PATH_MAX, limits.h.
DEPTH, NAME = 18, 240

#: When one of the files was written, in seconds since the epoch.
WRITTEN = 1_234_567_890

#: Names of files; not all file systems can have all of them.
NAMES = (
    b".hidden",
    b" blank",
    b"line\nbreak\ttab",
    b'"quoted\\',
    "na\u00efve \u4e16\u754c".encode(),
    b"\xff\xfe no text",
)


@frozen
class Findings:
    """
    What a toolkit is good for on a volume.

    :param permissions: how its listings tell permissions; None when they cannot be used.
    :param counts: whether it counts trees.
    :param removes: whether it removes trees.
    :param complaints: why it does not do the rest.
    """

    permissions: Callable[[int], int] | None = None
    counts: bool = False
    removes: bool = False
    complaints: tuple[str, ...] = ()

    @property
    def uses(self) -> dict[str, str]:
        """What each command that can be used is used for."""
        found = {
            LIST: "listings" if self.permissions else "",
            COUNT: "usage" if self.counts else "",
            REMOVE: "the trash" if self.removes else "",
        }
        return {name: use for name, use in found.items() if use}


def probe(toolkit: Toolkit, root: Directory, step: Step = unwatched) -> Findings:
    """
    Try all commands. Blocks.

    :param root: of the volume, which is written to.
    :param step: called often.
    :raises OSError: when nothing can be tried.
    """
    complaints: list[str] = []

    def holds(name: str, trial: Callable[[], T]) -> T | None:
        if name not in toolkit.versions:
            return None
        step(0)
        try:
            return trial()
        except (CommandFailed, OSError) as error:
            said = str(error)
            complaints.append(said if said.startswith(f"{name}:") else f"{name}: {said}")
            return None

    confinable = launch.confinable()
    if not confinable:
        complaints.append(
            f"{COUNT} and {REMOVE} need a kernel that can confine them (5.13, with Landlock)"
        )
    with _somewhere(root) as directory:
        _fill(directory)
        return Findings(
            holds(LIST, lambda: _lists(toolkit, directory)),
            confinable and bool(holds(COUNT, lambda: _counts(toolkit, directory, step))),
            confinable and bool(holds(REMOVE, lambda: _removes(toolkit, directory, step))),
            tuple(complaints),
        )


@contextmanager
def _somewhere(root: Directory) -> Iterator[Directory]:
    name = uuid4().hex
    with root.ensure(PLACE, 0o700) as place:
        os.mkdir(name, 0o700, dir_fd=place.descriptor)
        try:
            with _deep(place, name) as directory:
                yield directory
        finally:
            removal.remove(place, name)


def _deep(place: Directory, name: str) -> Directory:
    current = place.descend(name)
    for _ in range(DEPTH):
        below = "d" * NAME
        try:
            os.mkdir(below, 0o700, dir_fd=current.descriptor)
            deeper = current.descend(below)
        finally:
            current.close()
        current = deeper
    return current


def _fill(directory: Directory) -> None:
    def write(path: bytes, content: bytes) -> None:
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL
        descriptor = os.open(path, flags, 0o600, dir_fd=directory.descriptor)
        try:
            os.write(descriptor, content)
            os.fchmod(descriptor, 0o640)
            os.utime(descriptor, (WRITTEN, WRITTEN))
        finally:
            os.close(descriptor)

    write(b"plain", b"plain")
    for number, name in enumerate(NAMES):
        # Where a name cannot be given, there is none to be listed.
        with suppress(OSError):
            write(name, bytes(number))
    for below in ("sub", "doomed", "doomed/inner"):
        os.mkdir(below, 0o750, dir_fd=directory.descriptor)
    write(b"sub/file", b"some bytes")
    write(b"doomed/inner/file", b"some bytes")
    for path, target in (("link", "sub"), ("dead", "nowhere"), ("doomed/out", "../sub")):
        os.symlink(target, path, dir_fd=directory.descriptor)
    os.symlink("../../sub", "doomed/inner/beside", dir_fd=directory.descriptor)


def _lists(toolkit: Toolkit, directory: Directory) -> Callable[[int], int]:
    try:
        _compare(toolkit, directory, permissions)
        return permissions
    except CommandFailed as error:
        with suppress(CommandFailed):
            _compare(toolkit, directory, octal_permissions)
            return octal_permissions
        raise error


def _compare(toolkit: Toolkit, directory: Directory, way: Callable[[int], int]) -> None:
    found = _described(toolkit.scan(directory, way))
    expected = _described(files.scan(directory))
    for name, entry in expected.items():
        if found.get(name) != entry:
            raise CommandFailed(f"of {name!r} it says {found.get(name)}, which is {entry}")
    for name in found.keys() - expected.keys():
        raise CommandFailed(f"it lists {name!r}, which is not there")


def _described(entries: files.Scan) -> dict[str, tuple[object, ...]]:
    """What has to be the same however it is found; sizes of directories mean nothing."""
    return {
        name: (
            oct(status.st_mode),
            None if stat.S_ISDIR(status.st_mode) else status.st_size,
            status.st_mtime_ns // 10**9,
            status.st_ctime_ns // 10**9,
        )
        for name, status in entries
    }


def _counts(toolkit: Toolkit, directory: Directory, step: Step) -> bool:
    found, expected = toolkit.count(directory, step), trees.usage(directory)
    if found != expected:
        raise CommandFailed(f"it counts {found}, which is {expected}")
    return True


def _removes(toolkit: Toolkit, directory: Directory, step: Step) -> bool:
    before = trees.usage(directory)
    with directory.descend("doomed") as doomed:
        inside = trees.usage(doomed)
    toolkit.remove(directory, "doomed", step)
    if "doomed" in os.listdir(directory.descriptor):
        raise CommandFailed("it leaves what it is to remove")
    expected = trees.Usage(before.files - inside.files, before.used_bytes - inside.used_bytes)
    if trees.usage(directory) != expected:
        raise CommandFailed("it removes more than it is to remove")
    return True

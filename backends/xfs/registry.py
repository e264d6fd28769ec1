# -*- test-case-name: tests.test_xfs_registry -*-
"""
The registry of projects: ``/etc/projects`` and ``/etc/projid`` in their documented form.

Others write there too, by hand and by programs, so all that is not ours is kept to the byte. A
line ``ID:/path`` of ours says which directory has the project, a line ``storage-proxy-ID:ID`` that
the id is taken: it stays when the directory is gone and something is still charged to the project.

Whoever changes the files holds a lock beside them, and puts a new file in the place of the old one.
"""

from __future__ import annotations

import fcntl
import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from copy import copy
from itertools import chain
from typing import TypeAlias, TypeVar

from attrs import define, field, frozen
from twisted.python.failure import Failure

from backends.xfs.interfaces import NotManaged

T = TypeVar("T")
#: What tells one content of a file from another.
State: TypeAlias = tuple[int, int, int]

#: projects(5): what xfs_quota takes for the id is what atoi(3) does.
_PLACE = re.compile(rb"^[ \t]*(\d{1,10}):([^\n]*)$", re.MULTILINE)
#: projid(5): a name that is a number is one of the id, so what is before the last colon may be any.
_NAME = re.compile(rb"^(?!#)([^\n]*):[ \t]*(\d{1,10})[ \t\r]*$", re.MULTILINE)
_LINE = re.compile(rb"[^\n]*\n|[^\n]+")

#: What the lock is called, beside the file of projects.
LOCK = ".lock"


def no_step(name: str) -> None:
    """The step of work that nobody interrupts."""


def name_of(project: int) -> bytes:
    """What a project of ours is called."""
    return b"storage-proxy-%d" % project


def _name_line(project: int) -> bytes:
    return b"%s:%d\n" % (name_of(project), project)


@define
class Entries:
    """
    What both files say, to be changed.

    :param places: the lines of the first one.
    :param names: the lines of the second one.
    :ivar paths: project to directory. Of several lines for one project, the first counts.
    :ivar projects: directory to all projects that lines give to it.
    :ivar ours: the projects that have the name that we give.
    :ivar others: those that have another one.
    """

    places: list[bytes]
    names: list[bytes]
    paths: dict[int, str] = field(init=False, factory=dict)
    projects: dict[str, frozenset[int]] = field(init=False, factory=dict)
    ours: set[int] = field(init=False, factory=set)
    others: set[int] = field(init=False, factory=set)

    def __attrs_post_init__(self) -> None:
        places, names = self.files
        for number, path in _PLACE.findall(places):
            self._placed(int(number), os.fsdecode(path))
        for name, number in _NAME.findall(names):
            project = int(number)
            (self.ours if name == name_of(project) else self.others).add(project)

    @classmethod
    def parse(cls, places: bytes, names: bytes) -> Entries:
        """Read the contents of both files."""
        return cls(_LINE.findall(places), _LINE.findall(names))

    def is_ours(self, project: int, ids: range) -> bool:
        """
        Whether a project is one that was given here: it has an id of those, or our name, and
        nobody else has named it.

        :param ids: those that may be given. They may have been others once; the names tell then.
        """
        return project not in self.others and (project in ids or project in self.ours)

    def claims(self, path: str, ids: range) -> frozenset[int]:
        """The projects that lines of others give to a directory."""
        found = self.projects.get(path, frozenset())
        return frozenset(project for project in found if not self.is_ours(project, ids))

    def given(self, path: str, ids: range) -> int | None:
        """
        Find the project that was given to a directory.

        :raises NotManaged: when a line of somebody else gives it one.
        """
        if claims := self.claims(path, ids):
            raise NotManaged(
                f"{path} belongs to project {min(claims)}, as a line of somebody else says: without"
                " that it would get one of those that are given here"
            )
        return min(self.projects.get(path, ()), default=None)

    def is_taken(self, project: int) -> bool:
        """Whether an id is in use, by whomsoever."""
        return project in self.paths or project in self.ours or project in self.others

    def choose(self, ids: range, after: int, busy: Iterable[int] = ()) -> int:
        """
        Find an id that is free.

        :param ids: those that may be given.
        :param after: the one that was given last; others come round before it does.
        :param busy: ids that cannot be given although they are not here.
        :raises NotManaged: when there is none.
        """
        unusable = frozenset(busy)
        begin = min(max(after + 1, ids.start), ids.stop)
        for project in chain(range(begin, ids.stop), range(ids.start, begin)):
            if project not in unusable and not self.is_taken(project):
                return project
        raise NotManaged(
            f"all project ids from {ids.start} to {ids.stop - 1} are taken: give the agent more"
        )

    def place(self, project: int, path: str) -> None:
        """
        Record that a directory has a project.

        :raises NotManaged: when its path cannot be recorded.
        """
        check_path(path)
        self.name(project)
        _append(self.places, b"%d:%s\n" % (project, os.fsencode(path)))
        self._placed(project, path)

    def name(self, project: int) -> None:
        """Record that an id is taken."""
        if project not in self.ours and project not in self.others:
            _append(self.names, _name_line(project))
            self.ours.add(project)

    def displace(self, project: int) -> None:
        """Record that the directory of a project is gone. The id stays taken."""
        self.name(project)
        path = self.paths.pop(project, None)
        if path is None:
            return
        left = self.projects[_directory(path)] - {project}
        if left:
            self.projects[_directory(path)] = left
        else:
            del self.projects[_directory(path)]
        lines, self.places = self.places, []
        for line in lines:
            if b"%d:" % project in line and (found := _PLACE.match(line)):
                other = os.fsdecode(found[2])
                if int(found[1]) == project:
                    if other == path:
                        continue
                    # Others may have given it a second directory.
                    self._placed(project, other)
            self.places.append(line)

    def forget(self, project: int) -> None:
        """Give an id back that has no directory. Names that others have given to it stay."""
        if project in self.paths:
            return
        line = _name_line(project)
        self.names = [one for one in self.names if one != line and one + b"\n" != line]
        self.ours.discard(project)

    def copy(self) -> Entries:
        """The same once more, to be changed on its own."""
        same = copy(self)
        same.places, same.names = list(self.places), list(self.names)
        same.paths, same.projects = dict(self.paths), dict(self.projects)
        same.ours, same.others = set(self.ours), set(self.others)
        return same

    @property
    def files(self) -> tuple[bytes, bytes]:
        """The contents of both files."""
        return b"".join(self.places), b"".join(self.names)

    def _placed(self, project: int, path: str) -> None:
        self.paths.setdefault(project, path)
        directory = _directory(path)
        self.projects[directory] = self.projects.get(directory, frozenset()) | {project}


def _directory(path: str) -> str:
    """What a path names, however people write it."""
    return os.path.normpath("/" + path.lstrip("/"))


def _append(lines: list[bytes], line: bytes) -> None:
    if lines and not lines[-1].endswith(b"\n"):
        lines[-1] += b"\n"
    lines.append(line)


def check_path(path: str) -> None:
    """
    Refuse a path that the format cannot hold; it has no way to escape anything. All but the end of
    the line is taken as it is, also colons and blanks.

    :raises NotManaged:
    """
    if "\n" in path or "\r" in path or not path.startswith("/"):
        raise NotManaged(f"the path {path!r} cannot be recorded among the projects")


@frozen
class _Seen:
    """The state of both files for which something was read."""

    states: tuple[State | None, State | None]
    entries: Entries


class Registry:
    """
    Both files. All of it blocks.

    :param projects: the path of ``/etc/projects``, or what is used instead.
    :param projid: that of ``/etc/projid``.
    :param step: called between any two steps of a change, with a name for what was done; for tests
        that end the process there.
    """

    def __init__(
        self,
        projects: str = "/etc/projects",
        projid: str = "/etc/projid",
        step: Callable[[str], object] = no_step,
    ) -> None:
        # A new file shall not take the place of a link.
        self.projects = os.path.realpath(projects)
        self.projid = os.path.realpath(projid)
        self._step = step
        self._seen: _Seen | None = None

    def read(self) -> Entries:
        """
        What the files say now, which may not be changed. It is read once for each state of them.
        """
        states = (_state_at(self.projects), _state_at(self.projid))
        seen = self._seen
        # Two files that are read after their states can only be newer than these.
        if seen is None or seen.states != states:
            seen = _Seen(states, Entries.parse(_content(self.projects), _content(self.projid)))
            self._seen = seen
        return seen.entries

    def change(self, edits: Sequence[Callable[[Entries], T]]) -> list[T | Failure]:
        """
        Make changes together, and return when they are on stable storage.

        :param edits: each is called with what the files say, changes it, or raises before it does.
        :return: for each what it returns or raises.
        """
        with self._locked():
            before = self.read()
            entries = before.copy()
            results = [_result(edit, entries) for edit in edits]
            # An id has its name before it has a directory.
            names = self._replace(self.projid, before.names, entries.names)
            places = self._replace(self.projects, before.places, entries.places)
            self._seen = _Seen((places, names), entries)
        return results

    @contextmanager
    def _locked(self) -> Iterator[None]:
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
        descriptor = os.open(self.projects + LOCK, flags, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)

    def _replace(self, path: str, before: list[bytes], lines: list[bytes]) -> State | None:
        if lines == before:
            return _state_at(path)
        new = path + ".new"
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW
        with open(os.open(new, flags, 0o600), "wb") as file:
            _keep_rights(path, file.fileno())
            file.write(b"".join(lines))
            file.flush()
            os.fsync(file.fileno())
            state = _state(os.fstat(file.fileno()))
        self._step(f"{os.path.basename(path)} written")
        os.rename(new, path)
        self._step(f"{os.path.basename(path)} replaced")
        directory = os.open(os.path.dirname(path), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)
        return state


def _state_at(path: str) -> State | None:
    try:
        return _state(os.stat(path))
    except FileNotFoundError:
        return None


def _state(status: os.stat_result) -> State:
    return status.st_ino, status.st_size, status.st_mtime_ns


def _content(path: str) -> bytes:
    try:
        with open(path, "rb") as file:
            return file.read()
    except FileNotFoundError:
        return b""


def _keep_rights(path: str, descriptor: int) -> None:
    try:
        old = os.stat(path)
    except FileNotFoundError:
        os.fchmod(descriptor, 0o644)
        return
    new = os.fstat(descriptor)
    if (new.st_uid, new.st_gid) != (old.st_uid, old.st_gid):
        os.fchown(descriptor, old.st_uid, old.st_gid)
    os.fchmod(descriptor, old.st_mode & 0o7777)


def _result(edit: Callable[[Entries], T], entries: Entries) -> T | Failure:
    try:
        return edit(entries)
    except Exception:
        return Failure()

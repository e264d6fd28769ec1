"""
Whatever the owners of folders do with projects, nobody leaves his limit for good, and nobody takes
that of somebody else; and what an administrator has written is his.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Callable
from itertools import count
from typing import TypeAlias

from hypothesis import example, given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from backends.xfs.interfaces import Limit, Mark, NotManaged
from storageproxy.testing import SynchronousThreads, result_of
from tests.strategies import QUICK
from tests.xfs_fakes import IDS, Rig

#: What is done to the project of a folder, by its number, or to that of a directory in it. A
#: project is given by the number of the folder that had it first, or by its id.
Deed: TypeAlias = tuple[str, int, int]

#: Folder 0 is that of somebody else.
FOLDERS = range(4)
OWNED = st.sampled_from(FOLDERS[1:])
PROJECTS = st.sampled_from([*FOLDERS, 42, IDS.start + 4, IDS.stop - 1, -1])

DEEDS = (
    st.tuples(st.sampled_from(["give", "give below"]), OWNED, PROJECTS)
    | st.tuples(st.sampled_from(["delete", "make"]), OWNED, st.just(0))
    | st.tuples(st.sampled_from(["purge", "reconcile", "restart"]), st.just(0), st.just(0))
)


class Volume:
    """
    A volume with folders of two owners.

    :param prepare: is called before there are any.
    """

    def __init__(self, directory: str, prepare: Callable[[Rig], object] = lambda rig: None) -> None:
        os.makedirs(directory)
        self.rig = Rig(directory, SynchronousThreads())
        self.kernel = self.rig.kernel
        self.trash = self.rig.path("trash")
        os.mkdir(self.trash)
        self._thrown_away = count()
        self._gone: list[int] = []
        self._first: dict[int, int] = {}
        prepare(self.rig)
        for number in FOLDERS:
            with contextlib.suppress(NotManaged):
                self.make(number, 0)
            self._first[number] = self.project(number)

    def path(self, number: int) -> str:
        return self.rig.path("ab", "cd", f"{number:028x}")

    def limit(self, number: int) -> Limit:
        return Limit(4096 * (number + 1))

    def project(self, number: int) -> int:
        return self.kernel.of(self.path(number)).project

    def do(self, deed: Deed) -> None:
        name, number, more = deed
        with contextlib.suppress(FileNotFoundError):
            getattr(self, name.replace(" ", "_"))(number, more)

    def give(self, number: int, project: int) -> None:
        self.kernel.put(self.path(number), self._first.get(project, max(project, 0)))

    def give_below(self, number: int, project: int) -> None:
        below = os.path.join(self.path(number), "below")
        self.kernel.put(below, self._first.get(project, max(project, 0)))

    def make(self, number: int, _: int) -> None:
        if os.path.exists(self.path(number)):
            return
        path = self.rig.folder(number)
        descriptor = os.open(path, os.O_RDONLY)
        try:
            result_of(self.rig.projects.allocate(descriptor))
            result_of(self.rig.projects.set_limit(descriptor, self.limit(number)))
        finally:
            os.close(descriptor)
        self.kernel.make(self.kernel.make(os.path.join(path, "below")) + "/file", b"content")

    def delete(self, number: int, _: int) -> None:
        # The daemon has only the inode's word for the project.
        name = f"{next(self._thrown_away)}-{self.project(number)}"
        os.rename(self.path(number), os.path.join(self.trash, name))

    def purge(self, *_: int) -> None:
        for name in os.listdir(self.trash):
            shutil.rmtree(os.path.join(self.trash, name))
            self._gone.append(int(name.partition("-")[2]))
        for project in self._gone:
            with contextlib.suppress(NotManaged):
                result_of(self.rig.projects.release(project))
        self._gone.clear()

    def restart(self, *_: int) -> None:
        """Killed when what was in the trash is gone, and before anything is released."""
        for name in os.listdir(self.trash):
            shutil.rmtree(os.path.join(self.trash, name))
        self.rig.projects = self.rig.another()

    def reconcile(self, *_: int) -> None:
        result_of(self.rig.projects.reconcile())


class EscapeTests(SynchronousTestCase):
    @QUICK
    @given(st.lists(DEEDS, max_size=10))
    @example([("give", 2, 1), ("give", 1, 0), ("delete", 2, 0), ("purge", 0, 0)])
    @example([("give", 2, 1), ("give", 1, 2), ("delete", 2, 0), ("purge", 0, 0)])
    @example([("give", 2, 1), ("delete", 1, 0), ("purge", 0, 0)])
    @example([("give below", 2, 1), ("delete", 1, 0), ("purge", 0, 0)])
    @example([("give", 2, 0), ("delete", 2, 0), ("purge", 0, 0)])
    @example([("delete", 1, 0), ("make", 1, 0), ("give", 1, 1), ("purge", 0, 0)])
    @example([("delete", 1, 0), ("restart", 0, 0)])
    def test_escape(self, deeds: list[Deed]) -> None:
        """After a round each folder has its own project and its limit, and all in it has that."""
        volume = Volume(os.path.abspath(self.mktemp()))
        for deed in deeds:
            volume.do(deed)
        volume.reconcile()
        self.assertSound(volume)
        volume.purge()
        volume.reconcile()
        there = self.assertSound(volume)
        self.assertEqual(set(volume.kernel.limits), there, "nothing is left behind")
        entries = volume.rig.projects.registry.read()
        self.assertEqual((entries.ours, set(entries.paths)), (there, there))
        self.assertEqual(result_of(volume.rig.projects.reconcile()), [])

    def assertSound(self, volume: Volume) -> set[int]:
        found = set()
        for number in FOLDERS:
            path = volume.path(number)
            if not os.path.exists(path):
                continue
            project = volume.project(number)
            self.assertEqual(volume.kernel.limits.get(project), volume.limit(number))
            for directory in (path, os.path.join(path, "below")):
                self.assertEqual(volume.kernel.of(directory), Mark(project, True))
            self.assertNotIn(project, found)
            found.add(project)
        return found


#: An id that is none of those given here, and one that is, which somebody else has named.
THEIRS = (42, IDS.stop - 5)

#: Where the projects of somebody else may lie: on a folder, in one, on a scope, beside, outside.
PLACES = (
    f"ab/cd/{1:028x}",
    f"ab/cd/{2:028x}/below",
    f"ab/cd/{3:028x}/below/file",
    f"ab/cd/{3:028x}/missing",
    "5" * 32,
    "special",
    "../elsewhere",
)


class OthersTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.lines: list[bytes] = []

    def write(self, rig: Rig) -> None:
        """Write into the registry as an administrator does."""
        with open(rig.places, "ab") as places, open(rig.names, "ab") as names:
            places.writelines(self.lines)
            names.write(b"theirs:%d\n" % THEIRS[1])

    def marks(self, rig: Rig, places: list[str]) -> dict[str, Mark]:
        return {
            place: rig.kernel.of(rig.path(place)) for place in places if self.is_there(rig, place)
        }

    def is_there(self, rig: Rig, place: str) -> bool:
        return os.path.exists(rig.path(place))

    @QUICK
    @given(
        st.lists(
            st.tuples(
                st.sampled_from(THEIRS),
                st.sampled_from(PLACES),
                st.sampled_from(["", "/"]),
                st.sampled_from([None, 0, *THEIRS, 1500]),
            ),
            max_size=4,
        ),
        st.booleans(),
        st.lists(DEEDS, max_size=6),
    )
    def test_kept(
        self, claims: list[tuple[int, str, str, int | None]], first: bool, deeds: list[Deed]
    ) -> None:
        """Lines of others stay to the byte; their limits and directories are never touched."""

        def prepare(rig: Rig) -> None:
            rig.kernel.make(rig.path("special"))
            rig.folder(0, "5" * 32)
            self.lines = [
                f"{project}:{os.path.normpath(rig.path(place))}{end}\n".encode()
                for project, place, end, _ in claims
            ]
            if first:
                self.write(rig)

        volume = Volume(os.path.abspath(self.mktemp()), prepare)
        rig, places = volume.rig, [place for _, place, _, _ in claims]
        if not first:
            self.write(rig)
        for project in THEIRS:
            rig.kernel.limits[project] = Limit(1 << 20, project)
        for _, place, _, carried in claims:
            if carried is not None and self.is_there(rig, place):
                rig.kernel.put(rig.path(place), carried)
        for deed in deeds:
            with contextlib.suppress(NotManaged):
                volume.do(deed)
        before = self.marks(rig, places)
        for project in (*THEIRS, 1500):
            with contextlib.suppress(NotManaged):
                result_of(rig.projects.release(project))
        volume.reconcile()
        volume.reconcile()
        self.assertEqual(self.marks(rig, places), before)
        for project in THEIRS:
            self.assertEqual(rig.kernel.limits[project], Limit(1 << 20, project))
        self.assertFalse([call for call in rig.limits.calls if call[1] in THEIRS])
        with open(rig.places, "rb") as file:
            self.assertEqual([line for line in file if line in self.lines], self.lines)
        with open(rig.names, "rb") as file:
            self.assertIn(b"theirs:%d\n" % THEIRS[1], file.readlines())

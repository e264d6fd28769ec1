"""
Volumes on a real XFS, which has projects, and what is moved between them, also where its quotas
are not built into the kernel: those are faked here.
"""

from __future__ import annotations

import atexit
import os
from functools import cache

from twisted.internet.task import Clock
from twisted.trial.unittest import TestCase

from backends.vfs import TRASH
from backends.xfs.interfaces import Mark
from backends.xfs.kernel import Kernel
from backends.xfs.testing import MemoryKernel, MemoryProjects
from backends.xfs.volume import XFSVolume
from storageproxy import files
from storageproxy.beneath import Directory
from storageproxy.testing import SynchronousThreads, bare_id, scoped_id
from tests.engines import xfs
from tests.test_xfs_volume import XFSConformance


@cache
def mounted() -> str:
    """One file system for all of these tests."""
    directory = os.path.abspath("projects.tests")
    os.mkdir(directory)
    engine = xfs.mounted(directory)
    atexit.register(engine.__exit__, None, None, None)
    return engine.__enter__()


class LoopKernel(MemoryKernel):
    """The marks are those of the kernel, the accounts and limits are not."""

    _true = Kernel()

    def mark(self, descriptor: int) -> Mark:
        return self._true.mark(descriptor)

    def set_mark(self, descriptor: int, mark: Mark) -> None:
        self._true.set_mark(descriptor, mark)


class ProjectsTests(XFSConformance, TestCase):
    """The conformance, and what people can do about their projects."""

    def make_path(self) -> str:
        top = mounted()
        path = os.path.join(top, f"{self.id()}-{len(os.listdir(top))}")
        os.mkdir(path)
        return path

    def projects(self, path: str) -> MemoryProjects:
        return self.systems.setdefault(path, MemoryProjects(LoopKernel(path)))

    def make_volume(self, path: str) -> XFSVolume:
        projects = self.projects(path)
        return XFSVolume(
            "test", path, "", SynchronousThreads(), Clock(), lambda: projects, projects.kernel
        )

    def mark(self, path: str, project: int, inherited: bool = True) -> None:
        """What ``chattr -p`` does, which takes no privilege."""
        descriptor = os.open(path, os.O_RDONLY)
        try:
            Kernel().set_mark(descriptor, Mark(project, inherited))
        finally:
            os.close(descriptor)

    def marked(self, path: str) -> Mark:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            return Kernel().mark(descriptor)
        finally:
            os.close(descriptor)

    async def test_inherited(self) -> None:
        """What is made in a vfolder is charged to its project, which no other one has."""
        for number in (1, 2):
            await self.volume.create_folder(bare_id(number), None, None)
            self.fill(bare_id(number))
        marks = [self.marked(self.place(bare_id(number), "sub")) for number in (1, 2)]
        self.assertTrue(all(mark.project and mark.inherited for mark in marks), marks)
        self.assertNotEqual(*marks)
        file = self.place(bare_id(1), "sub", "run.sh")
        self.assertEqual(self.marked(file), Mark(marks[0].project, False))

    async def test_clone_is_another_project(self) -> None:
        """So is all of a clone, whatever the projects of what is cloned."""
        await self.volume.create_folder(bare_id(1), None, None)
        self.fill(bare_id(1))
        self.mark(self.place(bare_id(1), "sub"), 77)
        os.link(self.place(bare_id(1), "top.txt"), self.place(bare_id(1), "again"))
        await self.volume.clone_folder(bare_id(1), self.volume, bare_id(2))
        project = self.marked(self.place(bare_id(2))).project
        self.assertNotIn(project, (0, 77, self.marked(self.place(bare_id(1))).project))
        for name in ("sub", "sub/run.sh", "top.txt", "again"):
            self.assertEqual(self.marked(self.place(bare_id(2), name)).project, project, name)

    async def test_remove_other_projects(self) -> None:
        """A vfolder in which directories have other projects is removed all the same."""
        await self.volume.create_folder(bare_id(1), None, None)
        path = self.place(bare_id(1))
        for depth in range(1, 6):
            path = os.path.join(path, "sub")
            os.mkdir(path)
            with open(os.path.join(path, "file"), "wb"):
                pass
            self.mark(path, 70 + depth % 3, depth % 2 == 0)
        await self.volume.delete_folder(bare_id(1))
        await self.volume.empty_trash()
        self.assertEqual(os.listdir(os.path.join(self.path, TRASH)), [])

    async def test_delete_other_projects(self) -> None:
        """So are directories that people delete by themselves."""
        await self.volume.create_folder(bare_id(1), None, None)
        os.makedirs(self.place(bare_id(1), "a", "b", "c"))
        self.mark(self.place(bare_id(1), "a", "b", "c"), 77)

        def delete(folder: Directory) -> None:
            files.delete(folder, "test", ["a"], recursive=True)

        await self.volume.within(bare_id(1), delete)
        self.assertEqual(os.listdir(self.place(bare_id(1))), [])
        self.assertTrue(self.marked(self.place(bare_id(1))).inherited)

    async def test_delete_with_other_project(self) -> None:
        """A vfolder whose owner has changed its project is deleted, and can be made anew."""
        for vfid in (bare_id(1), scoped_id(1)):
            for project in (77, 0):
                await self.volume.create_folder(vfid, None, None)
                self.mark(self.place(vfid), project, inherited=False)
                self.assertTrue(await self.volume.delete_folder(vfid))
        await self.volume.empty_trash()
        self.assertEqual(os.listdir(os.path.join(self.path, TRASH)), [])

    async def test_folder_of_scope(self) -> None:
        """What is made in a limited scope belongs to its project, down to the files."""
        scope = scoped_id(1).scope
        assert scope is not None
        await self.volume.create_scope(scope, None)
        await self.volume.create_folder(scoped_id(1), None, None)
        self.fill(scoped_id(1))
        project = self.marked(os.path.join(self.path, *scope.layout)).project
        self.assertGreater(project, 0)
        self.assertEqual(self.marked(self.place(scoped_id(1), "sub", "run.sh")).project, project)

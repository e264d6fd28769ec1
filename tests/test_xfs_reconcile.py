"""
Registry, limits and inodes are brought together again, on a kernel in memory.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
from collections.abc import Callable, Iterator
from typing import Any

from backends.xfs.interfaces import Account, Limit, Mark, Quotas
from backends.xfs.projects import Projects
from storageproxy.beneath import Directory
from storageproxy.errors import BackendFailure
from storageproxy.testing import result_of
from storageproxy.threads import Progress
from tests.test_xfs_projects import ProjectsCase, opened

SCOPE = "5" * 32


class Killed(BaseException):
    """The process ends here."""


class ReconcileCase(ProjectsCase):
    def reconcile(self) -> list[str]:
        return self.do(self.projects.reconcile())

    def assertRight(self) -> None:
        """There is nothing to be repaired any more."""
        self.assertEqual(self.reconcile(), [])

    def assertLine(self, lines: list[str], *parts: str) -> None:
        """Exactly one of the lines has all these parts."""
        found = [line for line in lines if all(part in line for part in parts)]
        self.assertEqual(len(found), 1, lines)


class DriftTests(ReconcileCase):
    def test_nothing(self) -> None:
        """Where all is right nothing is done, and nothing is written."""
        self.assertRight()
        for digits in range(3):
            path, _ = self.folder(digits, limit=8192)
            self.kernel.make(self.kernel.make(os.path.join(path, "a")) + "/b", b"b")
        self.rig.steps.clear()
        calls = len(self.rig.limits.calls)
        self.assertRight()
        self.assertEqual(set(self.rig.steps), {"seized"})
        self.assertEqual(len(self.rig.limits.calls), calls)

    def test_changed(self) -> None:
        """A folder whose owner has left its project gets it back, with all in it and its limit."""
        path, project = self.folder(1, limit=8192)
        _, victim = self.folder(2, limit=4096)
        below = self.kernel.make(os.path.join(path, "a"))
        file = self.kernel.make(os.path.join(below, "file"), b"content")
        for strange in (0, victim, 42):
            for one in (path, below, file):
                self.kernel.put(one, strange)
            self.assertLine(self.reconcile(), path, f"project {strange}", f"{project}", "3 changed")
            for one in (path, below):
                self.assertEqual(self.kernel.of(one), Mark(project, True))
            self.assertEqual(self.kernel.of(file), Mark(project, False))
            self.assertEqual(self.account(path).limit, Limit(8192))
            self.assertRight()

    def test_inside(self) -> None:
        """What lies in a folder belongs to its project, also when it was moved there."""
        path, project = self.folder(1)
        _, other = self.folder(2)
        below = self.kernel.make(os.path.join(path, "a"))
        self.kernel.put(below, project, inherited=False)
        file = self.kernel.make(os.path.join(path, "file"), b"content")
        self.kernel.put(file, other)
        self.assertLine(self.reconcile(), path, "2 files and directories", str(project))
        self.assertEqual(self.kernel.of(below), Mark(project, True))
        self.assertEqual(self.kernel.of(file), Mark(project, False))
        self.assertRight()

    def test_flag(self) -> None:
        """A folder that does not hand its project on does so again."""
        path, project = self.folder(1)
        self.kernel.put(path, project, inherited=False)
        self.assertLine(self.reconcile(), path, "hand it on")
        self.assertEqual(self.kernel.of(path), Mark(project, True))

    def test_links(self) -> None:
        """Links are not followed, FIFOs make nobody wait."""
        path, project = self.folder(1)
        outside = self.kernel.make(self.rig.path("outside"))
        file = self.kernel.make(os.path.join(outside, "file"), b"content")
        os.symlink(outside, os.path.join(path, "directory"))
        os.symlink(file, os.path.join(path, "file"))
        os.mkfifo(os.path.join(path, "fifo"))
        self.kernel.put(path, 0)
        self.reconcile()
        self.assertEqual(self.kernel.of(path), Mark(project, True))
        self.assertEqual(self.kernel.of(outside), Mark(0, False))
        self.assertEqual(self.kernel.of(file), Mark(0, False))

    def test_swapped_for_link(self) -> None:
        """A link in the place of a folder is no folder."""
        path, project = self.folder(1, limit=8192)
        outside = self.kernel.make(self.rig.path("outside"))
        os.rename(path, self.rig.path("moved"))
        os.symlink(outside, path)
        lines = self.reconcile()
        self.assertEqual(self.kernel.of(outside), Mark(0, False))
        self.assertLine(lines, f"project {project}", path, "charged with 1 files")
        self.assertEqual(self.kernel.limits[project], Limit(8192))

    def test_moved_out(self) -> None:
        """What is charged to a project and not in its folder is told, and left to people."""
        path, project = self.folder(1)
        file = self.kernel.make(os.path.join(path, "file"), b"content")
        os.rename(file, self.rig.path("file"))
        for _ in range(2):
            self.assertLine(self.reconcile(), f"project {project}", "1 files", "not in it")
        self.assertEqual(self.kernel.of(self.rig.path("file")).project, project)

    def close(self, *names: str) -> None:
        """Have permissions in the way of what ends so."""

        def refuse(real: Callable[..., object]) -> Callable[..., object]:
            def wrapped(directory: object, path: str, *args: object, **more: object) -> object:
                if path.endswith(names):
                    raise PermissionError(13, "Permission denied")
                return real(directory, path, *args, **more)

            return wrapped

        self.patch(Directory, "open_file", refuse(Directory.open_file))
        self.patch(Directory, "descend", refuse(Directory.descend))

    def test_closed(self) -> None:
        """What may not be looked at is counted, and the rest is repaired."""
        path, project = self.folder(1)
        for name in ("left", "middle", "right"):
            self.kernel.put(self.kernel.make(os.path.join(path, name), b""), 0)
        self.kernel.make(os.path.join(path, "directory"))
        self.close("middle", "directory")
        lines = self.reconcile()
        self.assertLine(lines, "2 files and directories in 1 folders", "CAP_DAC_READ_SEARCH")
        self.assertEqual(self.kernel.of(os.path.join(path, "left")).project, project)
        self.assertEqual(self.kernel.of(os.path.join(path, "middle")).project, 0)

    def test_closed_folder(self) -> None:
        """A folder that is closed is told; it is not taken for one that is gone."""
        path, project = self.folder(1, limit=8192)
        other = self.rig.folder(2)
        self.kernel.put(path, 0)
        self.close("0001", "0002")
        lines = self.reconcile()
        self.assertLine(lines, path, "could not be looked at", "CAP_DAC_READ_SEARCH")
        self.assertLine(lines, other, "could not be looked at")
        self.assertEqual(len(lines), 2, lines)
        self.assertThere(project)
        self.assertRegistered({project: path})
        self.assertEqual(self.kernel.limits[project], Limit(8192))

    def refuse(self, name: str, number: int) -> None:
        """Have each look at what ends so fail."""
        descend = Directory.descend

        def wrapped(directory: Directory, path: str, **how: bool) -> Directory:
            if path.endswith(name):
                raise OSError(number, os.strerror(number))
            return descend(directory, path, **how)

        self.patch(Directory, "descend", wrapped)

    def test_cannot_be_looked_at(self) -> None:
        """Whatever is in the way of a folder, it is told, and keeps its limit; the rest is done."""
        path, project = self.folder(2, limit=8192)
        others = [self.folder(digits)[0] for digits in (1, 3)]
        for number, words in (
            (errno.EXDEV, "umount"),
            (errno.EIO, "Input/output error"),
            (errno.ENAMETOOLONG, "File name too long"),
        ):
            for other in others:
                self.kernel.put(other, 0)
            with contextlib.ExitStack() as patched:
                real = Directory.descend
                patched.callback(setattr, Directory, "descend", real)
                self.refuse("0002", number)
                lines = self.reconcile()
                self.assertLine(lines, path, "could not be looked at", words)
                self.assertEqual(len(lines), 3, lines)
                self.assertThere(project)
            self.assertEqual(self.kernel.limits, {project: Limit(8192)})
            self.assertRight()

    def test_above_cannot_be_looked_at(self) -> None:
        """So it is with a directory above folders."""
        path, project = self.folder(1, limit=8192)
        scope = self.rig.folder(1, SCOPE)
        self.refuse("cd", errno.EIO)
        lines = self.reconcile()
        self.assertLine(lines, self.rig.path("ab", "cd"), "Input/output error")
        self.assertLine(lines, os.path.dirname(scope), "Input/output error")
        self.assertEqual(len(lines), 2, lines)
        self.assertRegistered({project: path})

    def test_missed_inside(self) -> None:
        """What cannot be looked at in a folder is told by its cause."""
        path, _ = self.folder(1)
        for name in ("one", "two", "three"):
            self.kernel.make(os.path.join(path, name))
        self.refuse("one", errno.EXDEV)
        self.refuse("two", errno.EIO)
        lines = self.reconcile()
        self.assertLine(lines, path, "1 files and directories", "umount")
        self.assertLine(lines, path, "1 files and directories", "Input/output error")
        self.assertEqual(len(lines), 2, lines)

    def test_ids_taken(self) -> None:
        """When there are no ids any more the folders that have one are put right all the same."""
        path, project = self.folder(1, limit=8192)
        new = self.rig.folder(2)
        self.kernel.put(path, 0)
        self.projects.ids = range(project, project + 1)
        lines = self.reconcile()
        self.assertLine(lines, new, "gets none", "give the agent more")
        self.assertEqual(self.account(path).limit, Limit(8192))

    def test_strays(self) -> None:
        """
        Ids that owners have given to files of theirs, and nobody else to anybody, are not freed one
        by one: what is in a folder is taken from them, and of the others is one line.
        """
        path, project = self.folder(1, limit=8192)
        for number in range(1500, 1600):
            self.kernel.put(self.kernel.make(f"{path}/{number}", b""), number)
        for number in (1500, 1700, 1701):
            self.kernel.put(self.kernel.make(self.rig.path(f"{number}"), b""), number)
        self.rig.steps.clear()
        lines = self.reconcile()
        self.assertLine(lines, path, "100 files and directories")
        self.assertLine(lines, "3 projects that were given to nobody", "1500")
        self.assertEqual(len(lines), 2, lines)
        self.assertEqual(set(self.rig.steps), {"seized"})
        self.assertRegistered({project: path})

    def test_alive(self) -> None:
        """However many projects there are, reading their accounts is not taken for hanging."""
        steps: list[int] = []
        step = Progress.step

        def watched(progress: Progress, entries: int = 1, size: int = 0) -> None:
            steps.append(entries)
            step(progress, entries, size)

        def accounts(descriptor: int) -> Iterator[Account]:
            for number in range(3000, 3010):
                before = len(steps)
                yield Account(number, Limit(0), 0, 1)
                self.assertGreater(len(steps), before)

        self.patch(Progress, "step", watched)
        self.patch(self.kernel, "accounts", accounts)
        self.assertEqual(self.reconcile(), [])

    def test_given_meanwhile(self) -> None:
        """A folder that gets a project while others are given theirs keeps it, with the limit."""
        self.projects.ids = range(1000, 1001)
        gone, project = self.folder(1, limit=8192)
        os.rmdir(gone)
        accounts, assign = self.kernel.accounts, self.projects.assign
        path = self.rig.path("ab", "cd", f"{2:028x}")

        def released(descriptor: int) -> Iterator[Account]:
            yield from accounts(descriptor)
            self.do(self.projects.release(project))
            self.kernel.make(path)

        async def late(*args: Any, **more: Any) -> int:
            self.projects.assign = assign  # type: ignore[method-assign]
            self.allocate(path)
            self.set_limit(path, Limit(8192))
            return await assign(*args, **more)

        with contextlib.ExitStack() as patched:
            patched.callback(setattr, self.kernel, "accounts", accounts)
            self.kernel.accounts = released  # type: ignore[method-assign]
            self.projects.assign = late  # type: ignore[method-assign]
            self.reconcile()
        self.assertRegistered({project: path})
        self.assertEqual(self.account(path).limit, Limit(8192))

    def test_cannot_be_freed(self) -> None:
        """A project that cannot be freed is told, and the next ones are."""
        paths = [self.folder(digits, limit=8192)[0] for digits in range(2)]
        for path in paths:
            os.rmdir(path)
        self.rig.limits.says = "no"
        lines = self.reconcile()
        for path in paths:
            self.assertLine(lines, path, "cannot be freed", "no")
        self.rig.limits.says = ""
        self.reconcile()
        self.assertRegistered({})


class OthersTests(ReconcileCase):
    """Projects that somebody else has given."""

    def write(self, *lines: str) -> None:
        with open(self.rig.places, "a") as file:
            file.writelines(f"{line}\n" for line in lines)

    def test_claimed(self) -> None:
        """A folder that somebody else claims is told, and left alone with its project."""
        path, project = self.folder(1, limit=8192)
        self.write(f"42:{path}")
        for carried in (project, 0, 42):
            self.kernel.put(path, carried)
            lines = self.reconcile()
            self.assertLine(lines, path, "project 42", f"has project {carried}", "left alone")
            self.assertEqual(len(lines), 1, lines)
            self.assertEqual(self.kernel.of(path).project, carried)
        self.assertEqual(self.kernel.limits, {project: Limit(8192)})

    def test_inside(self) -> None:
        """His directory in a folder is left alone, and told when it has another project."""
        path, _ = self.folder(1)
        inside = self.kernel.make(os.path.join(path, "his"))
        self.kernel.put(inside, 42)
        self.write(f"42:{inside}/")
        self.assertRight()
        self.kernel.put(inside, 0)
        self.assertLine(self.reconcile(), inside, "project 42", "has project 0")
        self.assertEqual(self.kernel.of(inside).project, 0)

    def test_scope(self) -> None:
        """Folders of a scope that he claims are his, too."""
        scope = self.kernel.make(self.rig.path(SCOPE))
        self.write(f"42:{scope}")
        path = self.rig.folder(1, SCOPE)
        self.assertLine(self.reconcile(), scope, "project 42")
        self.assertEqual(self.kernel.of(path), Mark(0, False))

    def test_named(self) -> None:
        """An id that he has named is his, also when a folder has it that nobody knows."""
        with open(self.rig.names, "w") as file:
            file.write("his:1500\n")
        path = self.rig.folder(1)
        self.kernel.put(path, 1500)
        self.kernel.limits[1500] = Limit(8192)
        self.assertLine(self.reconcile(), path, "project 1500", "left alone")
        os.rmdir(path)
        self.assertRight()
        self.assertEqual(self.kernel.limits, {1500: Limit(8192)})

    def test_other_volume(self) -> None:
        """A folder does not get the project that a directory of another volume has."""
        self.write("1500:/elsewhere")
        path = self.rig.folder(1)
        self.kernel.put(path, 1500)
        self.assertLine(self.reconcile(), f"{path} had no project")
        self.assertEqual(self.projects.registry.read().paths[1500], "/elsewhere")


class FolderTests(ReconcileCase):
    def test_new(self) -> None:
        """A folder that has no project gets one, with all in it; it has no limit."""
        paths = [self.rig.folder(digits) for digits in range(150)]
        file = self.kernel.make(os.path.join(paths[1], "file"), b"content")
        lines = self.reconcile()
        for path in paths:
            self.assertLine(lines, f"{path} had no project", "without a limit")
        found = [self.account(path).project for path in paths]
        self.assertEqual(len(set(found)), 150)
        self.assertEqual(self.kernel.of(file).project, self.account(paths[1]).project)
        self.assertRight()

    def test_not_a_folder(self) -> None:
        """What is no vfolder is left alone."""
        for name in ("x", "ab", "ABCD", ".storage-proxy"):
            self.kernel.make(self.rig.path(name))
        self.kernel.make(self.rig.path("ab", "cd"))
        self.kernel.make(self.rig.path("ab", "cd", "short"))
        self.kernel.make(self.rig.path("ab", "cd", "0" * 28), b"a file")
        self.assertRight()
        self.assertEqual(self.projects.registry.read().files, (b"", b""))

    def test_scope(self) -> None:
        """Folders of a scope that has a project share it; others have their own."""
        shared = self.rig.folder(1, SCOPE)
        scope = self.rig.path(SCOPE)
        self.assertLine(self.reconcile(), f"{shared} had no project")
        shutil.rmtree(scope)
        self.reconcile()
        self.kernel.make(scope)
        project = self.allocate(scope)
        shared = self.rig.folder(1, SCOPE)
        self.assertEqual(self.kernel.of(shared), Mark(project, True))
        self.assertRight()
        own = self.rig.folder(2, SCOPE)
        own_project = self.allocate(own)
        self.kernel.make(os.path.join(own, "file"), b"content")
        self.assertRight()
        self.kernel.put(shared, 0)
        self.assertLine(self.reconcile(), scope, "1 files and directories")
        self.assertEqual(self.kernel.of(shared), Mark(project, True))
        self.assertEqual(self.kernel.of(own), Mark(own_project, True))

    def test_scope_without(self) -> None:
        """A scope needs no project."""
        self.kernel.make(self.rig.path(SCOPE))
        self.assertRight()

    def test_foreign(self) -> None:
        """A project that is not ours to give is left, and told."""
        path = self.rig.folder(1)
        self.kernel.put(path, 42)
        self.assertLine(self.reconcile(), path, "project 42", "left alone")
        self.assertEqual(self.kernel.of(path).project, 42)
        self.assertEqual(self.projects.registry.read().paths, {})

    def test_copy(self) -> None:
        """A folder with the project of another one gets its own."""
        first, project = self.folder(1, limit=8192)
        second = self.rig.folder(2)
        self.kernel.put(second, project)
        self.assertLine(self.reconcile(), f"{second} had no project")
        self.assertEqual(self.account(first).limit, Limit(8192))
        self.assertNotEqual(self.account(second).project, project)
        self.assertRight()


class RegistryTests(ReconcileCase):
    def test_lost(self) -> None:
        """When the registry is lost, it is made again from what is on the folders."""
        scope = self.kernel.make(self.rig.path(SCOPE))
        self.allocate(scope)
        self.rig.folder(7, SCOPE)
        paths = {self.folder(digits, limit=4096 * (digits + 1))[0]: digits for digits in range(5)}
        before = self.projects.registry.read().paths
        for name in (self.rig.places, self.rig.names):
            os.unlink(name)
        lines = self.reconcile()
        self.assertEqual(len(lines), 6, lines)
        self.assertRegistered(before)
        for path, digits in paths.items():
            self.assertEqual(self.account(path).limit, Limit(4096 * (digits + 1)))
        self.assertRight()

    def test_lost_and_new(self) -> None:
        """New folders get new ids, also before that is done."""
        _, project = self.folder(1)
        for name in (self.rig.places, self.rig.names):
            os.unlink(name)
        self.assertNotEqual(self.folder(2)[1], project)

    def test_names_lost(self) -> None:
        """A project without a name gets one."""
        path, project = self.folder(1)
        os.unlink(self.rig.names)
        self.assertLine(self.reconcile(), f"project {project}", "no name")
        self.assertRegistered({project: path})

    def test_ambiguous(self) -> None:
        """When it cannot be told whose a project is, nobody gets it."""
        first, project = self.folder(1, limit=8192)
        second, _ = self.folder(2)
        self.kernel.put(second, project)
        for name in (self.rig.places, self.rig.names):
            os.unlink(name)
        self.assertLine(self.reconcile(), first, second, "not known")
        self.assertEqual(self.kernel.limits[project], Limit(8192))

    def test_moved(self) -> None:
        """A folder that the administrator has moved keeps its project."""
        path, project = self.folder(1, limit=8192)
        new = self.rig.folder(2)
        os.rmdir(new)
        os.rename(path, new)
        self.assertLine(self.reconcile(), path, new, str(project))
        self.assertRegistered({project: new})
        self.assertEqual(self.account(new).limit, Limit(8192))
        self.assertRight()

    def test_gone(self) -> None:
        """A project whose folder is gone is free when nothing is charged to it any more."""
        path, project = self.folder(1, limit=8192)
        trash = self.rig.path("trash")
        os.rename(path, trash)
        for _ in range(2):
            self.assertLine(self.reconcile(), f"project {project}", path, "charged with 1 files")
        self.assertTrue(self.projects.registry.read().is_taken(project))
        os.rmdir(trash)
        self.assertLine(self.reconcile(), f"project {project}", "is free")
        self.assertRegistered({})
        self.assertEqual(self.kernel.limits, {})
        self.assertRight()

    def test_limit_left(self) -> None:
        """A limit that has neither directory nor usage is taken away."""
        self.kernel.limits[1500] = Limit(8192)
        self.assertLine(self.reconcile(), "project 1500", "is free")
        self.assertEqual(self.kernel.limits, {})
        self.assertRegistered({})

    def test_not_ours(self) -> None:
        """Limits and lines of others are left alone."""
        self.kernel.limits[42] = self.kernel.limits[1500] = Limit(8192)
        elsewhere = b"42:/elsewhere\n1501:/elsewhere too\n"
        with open(self.rig.places, "wb") as file:
            file.write(elsewhere)
        with open(self.rig.names, "wb") as file:
            file.write(b"theirs:1500\n")
        self.assertRight()
        self.assertEqual(set(self.kernel.limits), {42, 1500})
        self.assertEqual(self.projects.registry.read().files, (elsewhere, b"theirs:1500\n"))

    def test_no_quotas(self) -> None:
        """Without quotas nothing is done."""
        self.folder(1)
        self.kernel.state = Quotas.OFF
        with self.assertRaises(BackendFailure):
            self.reconcile()


class CrashTests(ReconcileCase):
    """The process is killed between any two steps; then comes another one, and reconciles."""

    def killed_at_each_step(self, work: Callable[[Projects], object]) -> None:
        """
        Do some work again and again, on a new folder, and end it one step later each time.
        """
        number = 0
        while True:
            self.digits = number
            projects = self.rig.another()
            self.prepare()
            steps = []

            def step(name: str, number: int = number, steps: list[str] = steps) -> None:
                steps.append(name)
                if len(steps) > number:
                    raise Killed

            self.rig.on_step = step
            try:
                work(projects)
                done = True
            except Killed:
                done = False
            self.rig.on_step = lambda name: None
            self.check(projects)
            if done:
                self.assertGreater(number, 2)
                return
            self.assertLess(number, 100, "it comes to no end")
            number += 1

    def prepare(self) -> None:
        self.path = self.rig.folder(self.digits)

    def check(self, projects: Projects) -> None:
        """The state is right after one round by another process."""
        self.projects = self.rig.another()
        self.reconcile()
        self.assertEqual(self.reconcile(), [])
        given = [self.kernel.of(path).project for path in self.projects.registry.read().projects]
        self.assertEqual(len(set(given)), len(given))
        self.assertEqual(sorted(given), sorted(self.projects.registry.read().paths))
        self.assertLessEqual(set(self.kernel.limits), set(given))

    def test_allocate(self) -> None:
        """Each folder has its own project."""

        def work(projects: Projects) -> None:
            self.allocate(self.path, projects)

        self.killed_at_each_step(work)
        self.assertEqual(len(self.projects.registry.read().paths), self.digits + 1)

    def test_limit(self) -> None:
        """A folder has its limit, the old one or the new one."""

        def work(projects: Projects) -> None:
            self.allocate(self.path, projects)
            with opened(self.path) as descriptor:
                result_of(projects.set_limit(descriptor, Limit(4096)))
                self.limited = True
                result_of(projects.set_limit(descriptor, Limit(8192)))

        check = self.check

        def check_limit(projects: Projects) -> None:
            check(projects)
            if self.limited:
                self.assertIn(self.account(self.path).limit, (Limit(4096), Limit(8192)))
            self.limited = False

        self.limited = False
        self.patch(self, "check", check_limit)
        self.killed_at_each_step(work)

    def test_release(self) -> None:
        """No limit is left behind, and no id is lost."""

        def work(projects: Projects) -> None:
            project = self.allocate(self.path, projects)
            with opened(self.path) as descriptor:
                result_of(projects.set_limit(descriptor, Limit(4096)))
            os.rmdir(self.path)
            self.assertTrue(result_of(projects.release(project)))

        self.killed_at_each_step(work)

    def test_reconcile(self) -> None:
        """Reconciling itself can be broken off anywhere."""

        def prepare() -> None:
            if self.digits:
                os.rmdir(self.path)
            self.path = self.rig.folder(self.digits)
            gone = self.rig.folder(self.digits + 1000)
            self.allocate(gone)
            with opened(gone) as descriptor:
                result_of(self.projects.set_limit(descriptor, Limit(4096)))
            os.rmdir(gone)

        self.patch(self, "prepare", prepare)
        self.killed_at_each_step(lambda projects: result_of(projects.reconcile()))

"""
What people and accidents do to projects, and how reconciling brings it together again.
"""

from __future__ import annotations

import os
import shutil

from twisted.trial.unittest import SynchronousTestCase

from tests.functional.daemon import Daemon, select_pause
from tests.xfs import kernel, services
from tests.xfs.case import MEBI, ProjectsCase


class DriftTests(ProjectsCase):
    def test_nothing(self) -> None:
        """There is nothing to say when all is as it should be."""
        folders = [self.limited_folder() for _ in range(3)]
        self.assertEqual(self.reconcile(), [])
        self.assert_sound(*folders)

    def test_left_quota(self) -> None:
        """Who has left the quota is back in it, with all that was written meanwhile."""
        path = self.owned_folder()
        number = kernel.project(path).id
        self.as_owner("xfs_io", "-r", "-c", "chproj 7", path)
        self.as_owner("mkdir", path / "sub")
        self.as_owner(
            "dd", "if=/dev/zero", f"of={path}/sub/large", "bs=1M", "count=10", "status=none"
        )
        self.assertLess(kernel.charges()[number].size, 2 * MEBI)
        self.told(path, "had project 7")
        self.assert_sound(path)
        self.assertEqual(kernel.project(path / "sub" / "large").id, number)
        self.assertGreaterEqual(kernel.charges()[number].size, 11 * MEBI)
        self.assertEqual(self.reconcile(), [])

    def test_project_of_other(self) -> None:
        """Who lives on the quota of somebody else is put back into his own."""
        victim, path = self.limited_folder(), self.owned_folder()
        number = kernel.project(victim).id
        self.as_owner("xfs_io", "-r", "-c", f"chproj {number}", path)
        self.as_owner("touch", path / "stray")
        self.told(path, f"had project {number}")
        self.assert_sound(victim, path)

    def test_no_inheritance(self) -> None:
        """A directory that does not hand its project on does so again."""
        path = self.owned_folder()
        self.as_owner("mkdir", path / "sub")
        self.as_owner("xfs_io", "-r", "-c", "chattr -P", path / "sub")
        self.as_owner("touch", path / "sub" / "file")
        self.assertEqual(kernel.project(path / "sub" / "file").id, 0)
        self.told(path)
        number = kernel.project(path).id
        self.assertEqual(kernel.project(path / "sub"), (number, True))
        self.assertEqual(kernel.project(path / "sub" / "file").id, number)

    def test_moved_out(self) -> None:
        """Files that were moved out are charged to the folder still: that is only told."""
        path = self.limited_folder()
        number = kernel.project(path).id
        (path / "file").rename(self.volume / "elsewhere")
        self.told(f"project {number}", path, "moved elsewhere")
        self.assertEqual(kernel.project(self.volume / "elsewhere").id, number)
        self.assertGreaterEqual(kernel.charges()[number].size, MEBI)

    def test_moved_out_and_gone(self) -> None:
        """An id that something is charged to still is not given to anybody else."""
        path = self.limited_folder()
        number = kernel.project(path).id
        (path / "file").rename(self.volume / "elsewhere")
        shutil.rmtree(path)
        self.assertFalse(self.mortal.do("release", number).result)
        others = [self.limited_folder() for _ in range(3)]
        self.assertNotIn(number, [kernel.project(other).id for other in others])
        self.told(f"project {number}")
        (self.volume / "elsewhere").unlink()
        self.settle(number)
        self.told(f"project {number}", "is free")
        self.assertNotIn(number, kernel.charges())

    def test_removed_by_hand(self) -> None:
        """The limit of a folder that was removed by hand is lifted, and its id free."""
        path, kept = self.limited_folder(), self.limited_folder()
        number = kernel.project(path).id
        self.remove(path)
        self.told(f"project {number}", path)
        self.assertNotIn(number, kernel.charges())
        self.assert_sound(kept)

    def test_registry_lost(self) -> None:
        """Without the registry nobody loses his project or limit, and no id is given twice."""
        folders = [self.limited_folder() for _ in range(3)]
        numbers = [kernel.project(path).id for path in folders]
        for name in ("projects", "projid"):
            (self.registry / name).unlink()
        new = self.limited_folder()
        self.assertNotIn(kernel.project(new).id, numbers)
        self.told(folders[0], "is recorded")
        self.assertEqual([kernel.project(path).id for path in folders], numbers)
        self.assert_sound(*folders, new)

    def test_one_file_lost(self) -> None:
        """Either file is made again from the other and from the inodes."""
        folders = [self.limited_folder() for _ in range(2)]
        for name in ("projects", "projid"):
            before = (self.registry / name).read_text()
            (self.registry / name).unlink()
            self.reconcile()
            self.assertEqual(
                sorted((self.registry / name).read_text().splitlines()),
                sorted(before.splitlines()),
            )
            self.assert_sound(*folders)

    def test_lines_of_others(self) -> None:
        """What others have written there stays to the byte, and their ids are theirs."""
        _, second, third, *free = self.ids
        places = b"# ours\n%d:/srv/d\xe9p\xf4t\n" % second
        names = b"depot:%d\nbackup:%d\n" % (second, third)
        (self.registry / "projects").write_bytes(places)
        (self.registry / "projid").write_bytes(names)
        folders = [self.limited_folder() for _ in range(3)]
        found = [kernel.project(path).id for path in folders]
        self.assertEqual(found, free[:3])
        self.remove(folders[1])
        self.reconcile()
        self.assertTrue((self.registry / "projects").read_bytes().startswith(places))
        self.assertTrue((self.registry / "projid").read_bytes().startswith(names))

    def test_folder_without_project(self) -> None:
        """A folder from before there were projects gets one, with all that is in it."""
        path = self.folder()
        (path / "sub").mkdir()
        (path / "sub" / "file").write_bytes(bytes(MEBI))
        self.told(path, "had no project")
        self.assert_sound()
        self.assertGreaterEqual(kernel.charges()[kernel.project(path).id].size, MEBI)


class FewIdsTests(ProjectsCase):
    count = 4

    def test_comes_round(self) -> None:
        """When all ids were given, those that are free come round, without old limits."""
        kept = self.limited_folder()
        first = kernel.project(kept).id
        given = []
        for _ in range(2 * self.count):
            path = self.limited_folder()
            given.append(kernel.project(path).id)
            self.remove(path)
            self.assertTrue(self.mortal.do("release", given[-1]).result)
        self.assertNotIn(first, given)
        self.assertLess(len(set(given)), len(given), "none came round")
        self.assert_sound(kept)

    def test_all_taken(self) -> None:
        """Who comes when all ids are taken is told what to do."""
        for _ in self.ids:
            self.limited_folder()
        error = self.assertRaises(RuntimeError, self.limited_folder)
        self.assertIn("give the agent more", str(error))


class MaintenanceTests(SynchronousTestCase):
    """Root without an agent reconciles by itself."""

    def test_daemon(self) -> None:
        """A daemon that has begun has found what its folders lacked."""
        volume = services.volume("embedded")
        os.chown(volume, 0, 0)
        path = volume / "ab" / "cd" / f"{1:028x}"
        path.mkdir(parents=True)
        (path / "file").write_bytes(b"x" * 5000)
        registry = services.directory("embedded")
        files = ", ".join(f'{name} = "{registry / name}"' for name in ("projects", "projid"))
        daemon = Daemon(
            services.directory("daemon-embedded"),
            mounts=volume.parent,
            volumes=("embedded",),
            volume_settings=f"options = {{ {files}, ids = [2000, 2099] }}",
            backend="xfs",
        )
        daemon.start()
        self.addCleanup(daemon.stop)
        while services.recorded(registry) != {str(path): 2000} or not kernel.project(path).id:
            select_pause()
        while kernel.project(path / "file").id != 2000:
            select_pause()
        self.assertEqual(kernel.project(path), (2000, True))

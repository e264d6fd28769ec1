"""
The registry of projects: others' lines are kept to the byte, and no id is given twice.
"""

from __future__ import annotations

import fcntl
import os
import threading
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase

from backends.xfs.interfaces import NotManaged
from backends.xfs.registry import LOCK, Entries, Registry
from storageproxy.testing import GIVE_UP
from tests.strategies import QUICK

IDS = range(100, 110)

PLACES = b"# projects(5)\n7:/srv/seven\n 8:/srv/eight: and more\n\nnonsense\n7:/srv/also seven"
NAMES = b"#name:100\nseven:7\nwith:colon:9\nodd\r\n"


def paths() -> st.SearchStrategy[str]:
    """Paths that the format can hold, among them some that look like other lines."""
    characters = st.characters(exclude_characters="\n\r\0", exclude_categories=["Cs"])
    return st.text(characters | st.sampled_from(":# 0"), max_size=20).map(lambda text: "/" + text)


def contents() -> st.SearchStrategy[bytes]:
    """What others may have written into either file."""
    lines = (
        st.binary(max_size=12)
        | st.sampled_from([b"105:/other", b"#104:/comment", b"", b"105:", b":105", b"x:105", b"\r"])
        | st.builds(lambda project, path: f"{project}:{path}".encode(), st.integers(0), paths())
    )
    end = st.sampled_from([b"", b"\n"])
    return st.builds(lambda them, end: b"\n".join(them) + end, st.lists(lines, max_size=6), end)


class EntriesTests(SynchronousTestCase):
    """What the two files say."""

    def test_parse(self) -> None:
        """Lines are understood as projects(5) and projid(5) say."""
        entries = Entries.parse(PLACES, NAMES)
        self.assertEqual(entries.paths, {7: "/srv/seven", 8: "/srv/eight: and more"})
        self.assertEqual(entries.projects["/srv/also seven"], {7})
        self.assertEqual((entries.ours, entries.others), (set(), {7, 9}))
        for project in (7, 8, 9):
            self.assertTrue(entries.is_taken(project))
        self.assertFalse(entries.is_taken(100))

    def test_place(self) -> None:
        """What is recorded comes after what is there, on lines of its own."""
        entries = Entries.parse(PLACES, NAMES)
        entries.place(100, "/srv/new")
        self.assertEqual(
            entries.files, (PLACES + b"\n100:/srv/new\n", NAMES + b"storage-proxy-100:100\n")
        )
        self.assertEqual(entries.projects["/srv/new"], {100})

    def test_named_already(self) -> None:
        """A project that somebody has named keeps that name alone."""
        entries = Entries.parse(b"", b"mine:100\n")
        entries.place(100, "/srv/new")
        self.assertEqual(entries.files[1], b"mine:100\n")

    def test_displace(self) -> None:
        """A project whose directory is gone stays taken, until it is forgotten."""
        entries = Entries.parse(PLACES, NAMES)
        entries.place(100, "/srv/new")
        entries.displace(100)
        self.assertTrue(entries.is_taken(100))
        self.assertNotIn("/srv/new", entries.projects)
        entries.forget(100)
        self.assertFalse(entries.is_taken(100))
        self.assertEqual(entries.files, (PLACES + b"\n", NAMES))

    def test_displace_unnamed(self) -> None:
        """So does one that had no name, as its line was lost."""
        entries = Entries.parse(b"100:/srv/new\n", b"")
        entries.displace(100)
        self.assertEqual(entries.files, (b"", b"storage-proxy-100:100\n"))

    def test_displace_others(self) -> None:
        """Other lines of the same project or directory stay, and count from then on."""
        entries = Entries.parse(b"100:/a\n100:/b\n1100:/a\n", b"")
        entries.displace(100)
        self.assertEqual(entries.files[0], b"100:/b\n1100:/a\n")
        self.assertEqual(entries.paths, {100: "/b", 1100: "/a"})
        self.assertEqual(entries.projects, {"/b": {100}, "/a": {1100}})
        entries = Entries.parse(b"100:/a\n7:/a\n", b"")
        entries.displace(100)
        self.assertEqual(entries.projects, {"/a": {7}})

    def test_displace_nothing(self) -> None:
        """A project without a directory has none to lose."""
        entries = Entries.parse(b"", b"storage-proxy-100:100\n")
        entries.displace(100)
        self.assertEqual(entries.files, (b"", b"storage-proxy-100:100\n"))

    def test_spellings(self) -> None:
        """A directory is the same, however its path is written."""
        entries = Entries.parse(b"7:/a/b/\n8://a//b\n9:/a/./b\n", b"")
        self.assertEqual(entries.projects, {"/a/b": {7, 8, 9}})

    def test_ours(self) -> None:
        """Ours is what has one of the ids, or our name, unless somebody else has named it."""
        names = b"storage-proxy-5:5\nmine:101\nstorage-proxy-102:102\nalso mine:102\nmine:6\n"
        entries = Entries.parse(b"7:/a\n100:/b\n101:/c\n102:/d\n5:/e\n103:/e\n", names)
        ours = {project for project in range(200) if entries.is_ours(project, IDS)}
        self.assertEqual(ours, {5, *IDS} - {101, 102})
        for path, project in (("/b", 100), ("/e", 5), ("/nowhere", None)):
            self.assertEqual(entries.given(path, IDS), project)
        for path, project in (("/a", 7), ("/c", 101), ("/d", 102)):
            error = self.assertRaises(NotManaged, entries.given, path, IDS)
            self.assertIn(f"project {project}", str(error))

    def test_claimed(self) -> None:
        """When a line of ours and one of somebody else give a directory a project, his counts."""
        for places in (b"100:/a\n7:/a/\n", b"7:/a\n100:/a\n"):
            self.assertRaises(NotManaged, Entries.parse(places, b"").given, "/a", IDS)

    def test_forget_used(self) -> None:
        """An id that has got a directory meanwhile is not given back."""
        entries = Entries.parse(b"100:/a\n", b"storage-proxy-100:100\n")
        entries.forget(100)
        self.assertEqual(entries.files, (b"100:/a\n", b"storage-proxy-100:100\n"))

    def test_forget_others(self) -> None:
        """A name that somebody else has given is not ours to remove."""
        entries = Entries.parse(b"", b"mine:100\nstorage-proxy-100:100")
        entries.forget(100)
        self.assertEqual(entries.files[1], b"mine:100\n")
        self.assertTrue(entries.is_taken(100))

    def test_odd_paths(self) -> None:
        """A path that would end its line is refused, and nothing is changed."""
        entries = Entries.parse(PLACES, NAMES)
        for path in ("/a\nb", "/a\rb", "relative", ""):
            self.assertRaises(NotManaged, entries.place, 100, path)
        self.assertEqual(entries.files, (PLACES, NAMES))

    def test_bytes(self) -> None:
        """A path need not be text."""
        path = os.fsdecode(b"/srv/\xff:\xfe")
        entries = Entries.parse(b"", b"")
        entries.place(100, path)
        self.assertEqual(entries.files[0], b"100:/srv/\xff:\xfe\n")
        self.assertEqual(Entries.parse(*entries.files).paths, {100: path})

    def test_choose(self) -> None:
        """Ids are given in turn, and those that are taken or busy are passed over."""
        entries = Entries.parse(b"100:/a\n", b"b:101\n")
        self.assertEqual(entries.choose(IDS, 0), 102)
        self.assertEqual(entries.choose(IDS, 0, {102}), 103)
        self.assertEqual(entries.choose(IDS, 105), 106)
        self.assertEqual(entries.choose(IDS, 109), 102)
        self.assertEqual(entries.choose(IDS, 10**12), 102)

    def test_choose_none(self) -> None:
        """When all ids are taken that is said."""
        entries = Entries.parse(b"".join(b"%d:/a\n" % project for project in IDS), b"")
        error = self.assertRaises(NotManaged, entries.choose, IDS, 0)
        self.assertIn("100 to 109", str(error))

    def test_copy(self) -> None:
        """A copy is changed on its own."""
        entries = Entries.parse(PLACES, NAMES)
        same = entries.copy()
        same.place(100, "/srv/new")
        same.displace(7)
        same.forget(9)
        self.assertEqual(entries, Entries.parse(PLACES, NAMES))

    @QUICK
    @given(contents(), contents())
    def test_kept(self, places: bytes, names: bytes) -> None:
        """Whatever is in the files, reading changes nothing."""
        self.assertEqual(Entries.parse(places, names).files, (places, names))

    @QUICK
    @given(contents(), contents(), st.lists(paths(), max_size=5, unique=True))
    def test_round_trip(self, places: bytes, names: bytes, new: list[str]) -> None:
        """What is recorded is read again, next to all that was there, and can be taken back."""
        entries = Entries.parse(places, names)
        given_ids = []
        for path in new:
            project = entries.choose(IDS, 0)
            self.assertFalse(entries.is_taken(project))
            entries.place(project, path)
            given_ids.append(project)
        self.assertEqual(len(set(given_ids)), len(new))
        again = Entries.parse(*entries.files)
        self.assertEqual(again, entries)
        for project, path in zip(given_ids, new, strict=True):
            self.assertEqual(again.paths[project], path)
        for project in given_ids:
            again.displace(project)
            self.assertEqual(Entries.parse(*again.files), again)
            again.forget(project)
            self.assertFalse(again.is_taken(project))
        for before, after in zip((places, names), again.files, strict=True):
            self.assertEqual(after.removesuffix(b"\n"), before.removesuffix(b"\n"))


class RegistryTests(SynchronousTestCase):
    """The files themselves."""

    def setUp(self) -> None:
        self.root = Path(self.mktemp()).absolute()
        self.root.mkdir(parents=True)
        self.projects, self.projid = self.root / "projects", self.root / "projid"
        self.steps: list[str] = []
        self.registry = self.make()

    def make(self) -> Registry:
        return Registry(str(self.projects), str(self.projid), self.steps.append)

    def place(self, project: int, path: str) -> None:
        self.registry.change([lambda entries: entries.place(project, path)])

    def test_missing(self) -> None:
        """Files that are not there are empty, and are made with the usual rights."""
        self.assertEqual(self.registry.read().files, (b"", b""))
        self.place(100, "/a")
        self.assertEqual(self.projects.read_bytes(), b"100:/a\n")
        self.assertEqual(self.projid.read_bytes(), b"storage-proxy-100:100\n")
        for path in (self.projects, self.projid):
            self.assertEqual(path.stat().st_mode & 0o777, 0o644)

    def test_rights(self) -> None:
        """A file keeps its permissions and its owner."""
        self.projects.write_bytes(PLACES)
        self.projects.chmod(0o640)
        if os.geteuid() == 0:
            os.chown(self.projects, 1, 2)
        before = self.projects.stat()
        self.place(100, "/a")
        after = self.projects.stat()
        self.assertNotEqual(before.st_ino, after.st_ino)
        for key in ("st_mode", "st_uid", "st_gid"):
            self.assertEqual(getattr(before, key), getattr(after, key))

    def test_link(self) -> None:
        """A file that is a link elsewhere stays one."""
        elsewhere = self.root / "elsewhere"
        elsewhere.write_bytes(PLACES)
        self.projects.symlink_to(elsewhere)
        self.registry = self.make()
        self.place(100, "/a")
        self.assertTrue(self.projects.is_symlink())
        self.assertTrue(elsewhere.read_bytes().endswith(b"100:/a\n"))

    def test_order(self) -> None:
        """Each file is put in its place whole, the names first."""
        self.place(100, "/a")
        self.assertEqual(
            self.steps,
            ["projid written", "projid replaced", "projects written", "projects replaced"],
        )
        self.assertEqual(sorted(os.listdir(self.root)), ["projects", "projects" + LOCK, "projid"])

    def test_unchanged(self) -> None:
        """A file that has nothing new is left alone."""
        self.place(100, "/a")
        self.steps.clear()
        self.registry.change([lambda entries: entries.displace(100)])
        self.assertEqual(self.steps, ["projects written", "projects replaced"])
        self.registry.change([lambda entries: None])
        self.assertEqual(len(self.steps), 2)

    def test_together(self) -> None:
        """Changes that are made together are written once, and each has its own result."""

        def wrong(entries: Entries) -> int:
            raise NotManaged("no")

        def place(entries: Entries) -> int:
            project = entries.choose(IDS, 0)
            entries.place(project, f"/{project}")
            return project

        first, failed, second = self.registry.change([place, wrong, place])
        self.assertEqual((first, second), (100, 101))
        assert isinstance(failed, Failure)
        self.assertIsInstance(failed.value, NotManaged)
        self.assertEqual(len(self.steps), 4)
        self.assertEqual(self.projects.read_bytes(), b"100:/100\n101:/101\n")

    def test_fresh(self) -> None:
        """What others have changed meanwhile is seen, and kept."""
        self.place(100, "/a")
        other = self.make()
        self.assertEqual(other.read().paths, {100: "/a"})
        with self.projects.open("ab") as file:
            file.write(b"101:/by hand\n")
        self.assertEqual(self.registry.read().paths, {100: "/a", 101: "/by hand"})
        other.change([lambda entries: entries.place(102, "/b")])
        self.assertEqual(self.registry.read().paths, {100: "/a", 101: "/by hand", 102: "/b"})
        self.place(103, "/c")
        self.assertEqual(other.read().paths[103], "/c")

    def test_read_once(self) -> None:
        """Files that have not changed are not read again."""
        self.place(100, "/a")
        self.assertIs(self.registry.read(), self.registry.read())
        other = self.make()
        self.assertIs(other.read(), other.read())

    def test_failure(self) -> None:
        """A change that cannot be written is not believed in."""
        self.place(100, "/a")
        (self.root / "projects.new").mkdir()
        self.assertRaises(OSError, self.place, 101, "/b")
        self.assertEqual(self.registry.read().paths, {100: "/a"})
        (self.root / "projects.new").rmdir()
        self.place(102, "/c")
        self.assertEqual(self.registry.read().paths, {100: "/a", 102: "/c"})

    def test_lock(self) -> None:
        """Who wants to change the files waits for those who do."""
        with (self.root / ("projects" + LOCK)).open("wb") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            thread = threading.Thread(target=self.place, args=(101, "/b"))
            thread.start()
            self.projects.write_bytes(b"100:/a\n")
            self.assertEqual(self.steps, [])
        thread.join(GIVE_UP)
        self.assertEqual(self.registry.read().paths, {100: "/a", 101: "/b"})

    def test_no_id_twice(self) -> None:
        """Several that choose at once never choose the same id."""
        found: list[int] = []

        def place(entries: Entries) -> int:
            project = entries.choose(range(1, 1000), 0)
            entries.place(project, f"/{project}")
            return project

        def work() -> None:
            registry = Registry(str(self.projects), str(self.projid))
            for _ in range(10):
                [project] = registry.change([place])
                assert isinstance(project, int)
                found.append(project)

        threads = [threading.Thread(target=work) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(GIVE_UP)
        self.assertEqual(sorted(found), list(range(1, 41)))
        entries = self.registry.read()
        self.assertEqual(sorted(entries.paths), sorted(found))
        self.assertEqual(entries.ours, set(found))

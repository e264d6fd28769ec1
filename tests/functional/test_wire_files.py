"""
The manager API: the files in a vfolder, once in each dialect of vfolder ids.
"""

from __future__ import annotations

import errno
import os
from datetime import UTC, datetime, timedelta
from typing import Any

from tests.functional.http11 import SMALL, Answer, OnFolder, dialects


class Listing(OnFolder):
    """Listing a directory."""

    def items(self, relpath: str = ".") -> dict[str, Any]:
        """List a directory, and return its items by name."""
        answer = self.post("/folder/file/list", relpath=relpath)
        self.assertEqual(answer.status, 200, answer.body)
        self.assertEqual(set(answer.json()), {"items"})
        return {item["name"]: item for item in answer.json()["items"]}

    def test_empty(self) -> None:
        """An empty folder has no items."""
        self.assertEqual(self.items(), {})

    def test_file(self) -> None:
        """A file is told with all that the original tells."""
        path = self.root / "file"
        path.write_bytes(b"x" * 7)
        path.chmod(0o640)
        item = self.items()["file"]
        self.assertEqual(item["type"], "FILE")
        self.assertEqual(item["symlink_target"], "")
        self.assertEqual(item["stat"]["size"], 7)
        self.assertEqual(item["stat"]["mode"], path.stat().st_mode)
        self.assertLessEqual({"created", "modified", "mode", "size"}, set(item["stat"]))

    def test_directory(self) -> None:
        """A directory is told as one, without what is in it."""
        (self.root / "d").mkdir()
        (self.root / "d" / "file").touch()
        items = self.items()
        self.assertEqual(set(items), {"d"})
        self.assertEqual(items["d"]["type"], "DIRECTORY")

    def test_subdirectory(self) -> None:
        """A subdirectory is listed by its path."""
        (self.root / "d").mkdir()
        (self.root / "d" / "file").touch()
        self.assertEqual(set(self.items("d")), {"file"})

    def test_times(self) -> None:
        """Times are in a form that every manager reads: `created` is the ctime."""
        path = self.root / "file"
        path.touch()
        os.utime(path, ns=(10**18, 1_500_000_000_123_456_789))
        told = self.items()["file"]["stat"]
        for name in ("created", "modified"):
            self.assertRegex(
                told[name], r"\A\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d{6})?\+00:00\Z", name
            )
        modified = datetime(2017, 7, 14, 2, 40, 0, 123_456, tzinfo=UTC)
        off = abs(datetime.fromisoformat(told["modified"]) - modified)
        self.assertLessEqual(off, timedelta(microseconds=1))
        created = datetime.fromtimestamp(path.stat().st_ctime, UTC)
        off = abs(datetime.fromisoformat(told["created"]) - created)
        self.assertLessEqual(off, timedelta(microseconds=1))

    def test_whole_seconds(self) -> None:
        """A time of whole seconds is in a form that every manager reads too."""
        path = self.root / "file"
        path.touch()
        os.utime(path, (1_500_000_000, 1_500_000_000))
        told = self.items()["file"]["stat"]["modified"]
        self.assertRegex(told, r"\A2017-07-14T02:40:00(\.000000)?\+00:00\Z")

    def test_names(self) -> None:
        """Names of all sorts are listed as they are."""
        names = {"späte Größe", "雪", 'quo"te', "new\nline", " blank ", "-rf", "a\\b", ".hidden"}
        for name in names:
            (self.root / name).touch()
        self.assertEqual(set(self.items()), names)

    def test_name_that_is_no_text(self) -> None:
        """One name that is no text does not hide the others."""
        (self.root / "file").touch()
        os.close(os.open(os.fsencode(self.root) + b"/\xff\xfe", os.O_CREAT | os.O_WRONLY))
        items = self.items()
        self.assertIn("file", items)
        self.assertEqual(len(items), 2)

    def test_link(self) -> None:
        """A link is told as one, with its target relative to the directory."""
        (self.root / "file").touch()
        (self.root / "link").symlink_to("file")
        item = self.items()["link"]
        self.assertEqual((item["type"], item["symlink_target"]), ("SYMLINK", "file"))

    def test_bad_links(self) -> None:
        """Broken links, loops and links outward do not break the listing."""
        (self.root / "broken").symlink_to("nowhere")
        (self.root / "loop").symlink_to("loop")
        (self.root / "out").symlink_to(self.outside)
        (self.root / "file").touch()
        items = self.items()
        self.assertEqual(set(items), {"broken", "loop", "out", "file"})
        for name in ("broken", "loop", "out"):
            self.assertEqual(items[name]["type"], "SYMLINK", name)

    def test_link_says_nothing_of_the_host(self) -> None:
        """Where a link leads on the host is not told."""
        (self.root / "file").touch()
        (self.root / "inner").symlink_to(self.root / "file")
        (self.root / "out").symlink_to("../../../outside")
        for name, item in self.items().items():
            self.assertNotIn(str(self.daemon.root), item["symlink_target"], name)

    def test_linked_directory(self) -> None:
        """A directory is listed through a link that stays inside of the folder."""
        (self.root / "d").mkdir()
        (self.root / "d" / "file").touch()
        (self.root / "link").symlink_to("d")
        self.assertEqual(set(self.items("link")), {"file"})

    def test_fifo(self) -> None:
        """A FIFO does not keep the manager waiting."""
        os.mkfifo(self.root / "fifo")
        self.assertEqual(set(self.items()), {"fifo"})

    def test_staging_is_visible(self) -> None:
        """The staging directory of an upload is listed as ever."""
        self.post("/folder/file/upload", relpath="file", size=1)
        self.assertEqual(set(self.items()), {".upload"})

    def test_missing(self) -> None:
        """A missing directory is told with its path."""
        answer = self.post("/folder/file/list", relpath="not/there")
        self.fault(answer, errno.ENOENT, "not/there")

    def test_not_a_directory(self) -> None:
        """A file has no listing."""
        (self.root / "file").touch()
        answer = self.post("/folder/file/list", relpath="file")
        self.fault(answer, errno.ENOTDIR, "file")

    def test_escape(self) -> None:
        """Nothing outside of the folder is listed."""
        for relpath in (*self.escapes(), "out", "relative", "inner/hop"):
            self.assert_problem(self.post("/folder/file/list", relpath=relpath), 400)

    def test_missing_folder(self) -> None:
        """A missing folder is told as one."""
        answer = self.post("/folder/file/list", vfid=self.new_id(), relpath=".")
        self.assert_problem(answer, 404)


class CutListing(OnFolder):
    """``scandir-limit`` as an operator sets it."""

    settings = SMALL

    def test_cut(self) -> None:
        """A listing is cut at the limit, without a sign."""
        for number in range(10):
            (self.root / str(number)).touch()
        content = self.post("/folder/file/list", relpath=".").json()
        self.assertEqual(set(content), {"items"})
        self.assertEqual(len(content["items"]), 3)


class LongListing(OnFolder):
    """No ``scandir-limit``: a directory may have any number of entries."""

    settings = "scandir-limit = 0"

    def test_whole(self) -> None:
        """Thousands of entries are all listed once, while the listing is made."""
        names = [f"{number:04}" for number in range(5000)]
        for name in names:
            os.mknod(self.root / name)
        answer = self.post("/folder/file/list", relpath=".")
        self.assertEqual(answer.status, 200)
        self.assertEqual(answer.words("Transfer-Encoding"), {"chunked"})
        self.assertEqual(sorted(item["name"] for item in answer.json()["items"]), names)
        self.alive()

    def test_short(self) -> None:
        """A short listing has a length."""
        (self.root / "file").touch()
        answer = self.post("/folder/file/list", relpath=".")
        self.assertEqual(answer.header("Content-Length"), str(len(answer.body)))
        self.assertEqual(len(answer.json()["items"]), 1)


class Renaming(OnFolder):
    """Giving a file another name."""

    def rename(self, relpath: str, new_name: Any, **params: Any) -> Answer:
        """Rename something."""
        return self.post("/folder/file/rename", relpath=relpath, new_name=new_name, **params)

    def test_file(self) -> None:
        """A file is renamed where it is, without `is_dir` as 22.03's own manager asks."""
        (self.root / "d").mkdir()
        (self.root / "d" / "old").write_bytes(b"x")
        self.done(self.rename("d/old", "new"))
        self.assertEqual((self.root / "d" / "new").read_bytes(), b"x")
        self.assertFalse((self.root / "d" / "old").exists())

    def test_is_dir(self) -> None:
        """What managers of other eras say about directories changes nothing."""
        (self.root / "a").touch()
        self.done(self.rename("a", "b", is_dir=True))
        self.done(self.rename("b", "c", is_dir=False))
        self.done(self.rename("c", "d", is_dir="no"))
        self.assertTrue((self.root / "d").is_file())

    def test_directory(self) -> None:
        """A directory is renamed with all that is in it."""
        (self.root / "old").mkdir()
        (self.root / "old" / "file").touch()
        self.done(self.rename("old", "new"))
        self.assertTrue((self.root / "new" / "file").exists())

    def test_onto_a_file(self) -> None:
        """A file takes the place of a file, as on the original."""
        (self.root / "a").write_bytes(b"a")
        (self.root / "b").write_bytes(b"b")
        self.done(self.rename("a", "b"))
        self.assertEqual((self.root / "b").read_bytes(), b"a")

    def test_onto_a_directory(self) -> None:
        """Nothing is moved into a directory that has the new name."""
        (self.root / "a").write_bytes(b"a")
        (self.root / "b").mkdir()
        self.assert_problem(self.rename("a", "b"), 409)
        self.assertTrue((self.root / "a").exists())
        self.assertEqual(list((self.root / "b").iterdir()), [])

    def test_directory_onto_a_directory(self) -> None:
        """A directory does not replace another one, not even an empty one."""
        (self.root / "a").mkdir()
        (self.root / "b").mkdir()
        self.assert_problem(self.rename("a", "b"), 409)
        self.assertTrue((self.root / "a").exists())

    def test_link(self) -> None:
        """A link is renamed, not what it points to."""
        (self.root / "link").symlink_to(self.outside / "secret.txt")
        self.done(self.rename("link", "new"))
        self.assertEqual(os.readlink(self.root / "new"), str(self.outside / "secret.txt"))
        self.assert_untouched()

    def test_missing(self) -> None:
        """A missing file is told with its path."""
        self.fault(self.rename("d/old", "new"), errno.ENOENT, "d/old")

    def test_no_name(self) -> None:
        """What is no name of one file is refused."""
        (self.root / "a").touch()
        (self.root / "d").mkdir()
        for name in ("d/b", "/b", "../b", "b/", "..", ".", "", "b\0", 7, None):
            self.assert_problem(self.rename("a", name), 400)
        self.assertEqual({path.name for path in self.root.iterdir()}, {"a", "d"})
        self.assert_untouched()

    def test_long_name(self) -> None:
        """A name that the filesystem does not take is refused."""
        (self.root / "a").touch()
        self.fault(self.rename("a", "x" * 300), errno.ENAMETOOLONG)

    def test_root(self) -> None:
        """The folder itself is not renamed."""
        for relpath in (".", ""):
            self.assert_problem(self.rename(relpath, "new"), 400)
        self.assertTrue(self.root.is_dir())

    def test_escape(self) -> None:
        """Nothing outside of the folder is renamed."""
        for relpath in self.escapes():
            self.assert_problem(self.rename(relpath, "new"), 400)
        self.assert_untouched()

    def test_missing_folder(self) -> None:
        """A missing folder is told as one."""
        self.assert_problem(self.rename("a", "b", vfid=self.new_id()), 404)


class Moving(OnFolder):
    """Moving a file."""

    def move(self, source: str, target: str, **params: Any) -> Answer:
        """Move something."""
        return self.post("/folder/file/move", src_relpath=source, dst_relpath=target, **params)

    def setUp(self) -> None:
        """Have a file and two directories."""
        super().setUp()
        (self.root / "file").write_bytes(b"x")
        (self.root / "d" / "e").mkdir(parents=True)
        (self.root / "f").mkdir()

    def test_file(self) -> None:
        """A file is moved into another directory under another name."""
        self.done(self.move("file", "d/new"))
        self.assertEqual((self.root / "d" / "new").read_bytes(), b"x")
        self.assertFalse((self.root / "file").exists())

    def test_directory(self) -> None:
        """A directory is moved with all that is in it."""
        self.done(self.move("d", "f/g"))
        self.assertTrue((self.root / "f" / "g" / "e").is_dir())

    def test_onto_a_file(self) -> None:
        """A file takes the place of a file, as on the original."""
        (self.root / "d" / "old").write_bytes(b"old")
        self.done(self.move("file", "d/old"))
        self.assertEqual((self.root / "d" / "old").read_bytes(), b"x")

    def test_onto_a_directory(self) -> None:
        """A directory in the way is a conflict, and nothing is moved into it."""
        self.assert_problem(self.move("file", "f"), 409)
        self.assert_problem(self.move("d", "f"), 409)
        self.assertEqual(list((self.root / "f").iterdir()), [])
        self.assertTrue((self.root / "d" / "e").is_dir())

    def test_into_itself(self) -> None:
        """A directory is not moved into itself."""
        self.assert_problem(self.move("d", "d/e/d"), 400)
        self.assertTrue((self.root / "d" / "e").is_dir())

    def test_missing(self) -> None:
        """A missing source is told with its path."""
        self.fault(self.move("not/there", "new"), errno.ENOENT, "not/there")

    def test_missing_parent(self) -> None:
        """A target in a missing directory is told, and the source stays."""
        self.fault(self.move("file", "not/there"), errno.ENOENT)
        self.assertTrue((self.root / "file").exists())

    def test_below_a_file(self) -> None:
        """A target below a file is told, and the source stays."""
        self.fault(self.move("d", "file/new"), errno.ENOTDIR)
        self.assertTrue((self.root / "d").exists())

    def test_link(self) -> None:
        """A link is moved, not what it points to."""
        (self.root / "link").symlink_to(self.outside / "secret.txt")
        self.done(self.move("link", "d/link"))
        self.assertTrue((self.root / "d" / "link").is_symlink())
        self.assert_untouched()

    def test_escape_of_the_source(self) -> None:
        """Nothing is moved in from outside of the folder."""
        for relpath in self.escapes():
            self.assert_problem(self.move(relpath, "new"), 400)
        self.assert_untouched()

    def test_escape_of_the_target(self) -> None:
        """Nothing is moved out of the folder."""
        for relpath in self.escapes():
            self.assert_problem(self.move("file", relpath), 400)
        self.assertTrue((self.root / "file").exists())
        self.assert_untouched()

    def test_root(self) -> None:
        """The folder itself is neither moved nor replaced."""
        self.assert_problem(self.move(".", "d/root"), 400)
        self.assertGreaterEqual(self.move("file", ".").status, 400)
        self.assertTrue((self.root / "file").exists())

    def test_missing_folder(self) -> None:
        """A missing folder is told as one."""
        self.assert_problem(self.move("a", "b", vfid=self.new_id()), 404)


class Fetching(OnFolder):
    """Reading a file by way of the manager."""

    def fetch(self, relpath: str, **params: Any) -> Answer:
        """Fetch a file."""
        return self.post("/folder/file/fetch", relpath=relpath, **params)

    def test_file(self) -> None:
        """The content of a file comes as it is."""
        (self.root / "d").mkdir()
        (self.root / "d" / "file").write_bytes(bytes(range(256)))
        answer = self.fetch("d/file")
        self.assertEqual((answer.status, answer.body), (200, bytes(range(256))))
        self.assertEqual(answer.media_type, "application/octet-stream")

    def test_big_file(self) -> None:
        """A big file comes whole."""
        data = os.urandom(5_000_001)
        (self.root / "file").write_bytes(data)
        self.assertTrue(self.fetch("file").body == data)

    def test_empty_file(self) -> None:
        """An empty file is no error."""
        (self.root / "file").touch()
        answer = self.fetch("file")
        self.assertEqual((answer.status, answer.body), (200, b""))

    def test_link_inside(self) -> None:
        """A link that stays inside of the folder is followed."""
        (self.root / "file").write_bytes(b"x")
        (self.root / "link").symlink_to("file")
        self.assertEqual(self.fetch("link").body, b"x")

    def test_missing(self) -> None:
        """A missing file is not an empty one."""
        self.assert_problem(self.fetch("not/there"), 404)

    def test_directory(self) -> None:
        """A directory is not an empty file."""
        (self.root / "d").mkdir()
        for relpath in ("d", "."):
            self.assert_problem(self.fetch(relpath), 400)

    def test_fifo(self) -> None:
        """A FIFO does not keep the manager waiting."""
        os.mkfifo(self.root / "fifo")
        answer = self.fetch("fifo")
        self.assertTrue(400 <= answer.status < 500, answer.status)
        self.alive()

    def test_escape(self) -> None:
        """Nothing outside of the folder is read."""
        for relpath in self.escapes():
            answer = self.fetch(relpath)
            self.assertNotIn(b"not yours", answer.body)
            self.assert_problem(answer, 400)

    def test_missing_folder(self) -> None:
        """A missing folder is told as one."""
        self.assert_problem(self.fetch("file", vfid=self.new_id()), 404)


class Removing(OnFolder):
    """Deleting files in a vfolder."""

    def delete(self, *relpaths: str, **params: Any) -> Answer:
        """Delete something."""
        return self.post("/folder/file/delete", relpaths=list(relpaths), **params)

    def ok(self, answer: Answer) -> None:
        """Check that all was deleted."""
        self.assertEqual((answer.status, answer.json()), (200, {"status": "ok"}))

    def left(self) -> set[str]:
        """What is left in the folder."""
        return {path.name for path in self.root.iterdir()}

    def setUp(self) -> None:
        """Have three files and a directory with something in it."""
        super().setUp()
        for name in ("a", "b", "c"):
            (self.root / name).touch()
        (self.root / "d" / "e").mkdir(parents=True)
        (self.root / "d" / "file").touch()

    def test_file(self) -> None:
        """A file is deleted."""
        self.ok(self.delete("a"))
        self.assertEqual(self.left(), {"b", "c", "d"})

    def test_files(self) -> None:
        """Several files are deleted at once."""
        self.ok(self.delete("a", "./c", "d/file"))
        self.assertEqual(self.left(), {"b", "d"})
        self.assertFalse((self.root / "d" / "file").exists())

    def test_nothing(self) -> None:
        """Deleting nothing is no error."""
        self.ok(self.delete())
        self.assertEqual(self.left(), {"a", "b", "c", "d"})

    def test_directory(self) -> None:
        """A directory is not deleted unless it is asked for."""
        self.fault(self.delete("d"), errno.EISDIR, "d")
        self.assertTrue((self.root / "d" / "file").exists())

    def test_recursive(self) -> None:
        """A directory is deleted with all that is in it when it is asked for."""
        self.ok(self.delete("d", "a", recursive=True))
        self.assertEqual(self.left(), {"b", "c"})

    def test_missing(self) -> None:
        """A missing file is told with its path."""
        self.fault(self.delete("not/there"), errno.ENOENT, "not/there")

    def test_goes_on(self) -> None:
        """One path that fails does not keep the others, and is named."""
        content = self.fault(self.delete("a", "missing", "d", "c"))
        self.assertEqual(set(content["paths"]), {"missing", "d"})
        self.assertEqual(self.left(), {"b", "d"})

    def test_root(self) -> None:
        """The folder itself is not deleted, however it is spelled."""
        for relpath in (".", "", "./"):
            self.assert_problem(self.delete(relpath, recursive=True), 400)
        self.assertEqual(self.left(), {"a", "b", "c", "d"})

    def test_root_by_detour(self) -> None:
        """The folder itself is not deleted by way of its subdirectories."""
        for relpath in ("d/..", "d/e/../.."):
            self.assert_problem(self.delete(relpath, recursive=True), 400)
        self.assertEqual(self.left(), {"a", "b", "c", "d"})

    def test_link(self) -> None:
        """A link is deleted itself, and what it points to stays."""
        (self.root / "link").symlink_to("a")
        self.ok(self.delete("link"))
        self.assertEqual(self.left(), {"a", "b", "c", "d"})

    def test_broken_link(self) -> None:
        """A link that points nowhere can be deleted."""
        (self.root / "link").symlink_to("nowhere")
        (self.root / "loop").symlink_to("loop")
        self.ok(self.delete("link", "loop"))
        self.assertEqual(self.left(), {"a", "b", "c", "d"})

    def test_outward_link(self) -> None:
        """A link out of the folder can be deleted, and what it points to stays."""
        (self.root / "file").symlink_to(self.outside / "secret.txt")
        (self.root / "dir").symlink_to(self.outside)
        self.ok(self.delete("file", "dir", recursive=True))
        self.assertEqual(self.left(), {"a", "b", "c", "d"})
        self.assert_untouched()

    def test_links_in_a_directory(self) -> None:
        """A directory with links out of the folder is deleted without following them."""
        (self.root / "d" / "dir").symlink_to(self.outside)
        (self.root / "d" / "up").symlink_to("..")
        self.ok(self.delete("d", recursive=True))
        self.assertEqual(self.left(), {"a", "b", "c"})
        self.assert_untouched()

    def test_escape(self) -> None:
        """Nothing outside of the folder is deleted."""
        for relpath in self.escapes():
            self.assert_problem(self.delete(relpath, recursive=True), 400)
        self.assert_untouched()

    def test_no_list(self) -> None:
        """What is no list of paths is refused by name."""
        for relpaths in ("a", None, {"a": "b"}, 7, [7], ["a", "/b"]):
            content = self.assert_problem(
                self.post("/folder/file/delete", relpaths=relpaths), 400, "invalid-api-params"
            )
            self.assertIn("relpaths", content["data"], repr(relpaths))
        self.assertEqual(self.left(), {"a", "b", "c", "d"})

    def test_missing_folder(self) -> None:
        """A missing folder is told as one."""
        self.assert_problem(self.delete("a", vfid=self.new_id()), 404)


globals().update(dialects(Listing, CutListing, LongListing, Renaming, Moving, Fetching, Removing))

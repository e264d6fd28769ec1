"""
What a manager does to the files of a vfolder.
"""

from __future__ import annotations

import json
import os
import stat
from base64 import b64decode
from collections.abc import Generator
from datetime import UTC, datetime
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from storageproxy import files
from storageproxy.beneath import Directory
from storageproxy.errors import (
    InvalidSubpath,
    NotRegularFile,
    RequestTooLarge,
    StorageProxyError,
    TargetConflict,
)
from tests.test_beneath import descriptors

#: How a path that leads out may be refused.
REFUSED = (OSError, StorageProxyError)


class FilesTestCase(SynchronousTestCase):
    def setUp(self) -> None:
        self.outside = os.path.abspath(self.mktemp())
        os.makedirs(os.path.join(self.outside, "dir"))
        self.path = os.path.abspath(self.mktemp())
        os.makedirs(self.at("sub", "deep"))
        self.write("file", b"12345")
        self.write("sub/file", b"123")
        self.folder = Directory.open_root(self.path)
        self.addCleanup(self.folder.close)
        before = descriptors()
        self.addCleanup(lambda: self.assertEqual(descriptors(), before))

    def at(self, *names: str) -> str:
        return os.path.join(self.path, *names)

    def write(self, name: str, content: bytes = b"x") -> None:
        with open(self.at(name), "wb") as file:
            file.write(content)

    def read(self, name: str) -> bytes:
        with open(self.at(name), "rb") as file:
            return file.read()

    def link_out(self, name: str = "out") -> str:
        os.symlink(self.outside, self.at(name))
        return name

    def assertOutsideUntouched(self) -> None:
        self.assertEqual(os.listdir(self.outside), ["dir"])
        self.assertEqual(os.listdir(os.path.join(self.outside, "dir")), [])


class ListTests(FilesTestCase):
    def list(self, path: str = ".", limit: int = 0) -> dict[str, dict[str, Any]]:
        found = json.loads(b"".join(self.pieces(path, limit)))["items"]
        return {item["name"]: item for item in found}

    def pieces(self, path: str = ".", limit: int = 0) -> Generator[bytes, None, None]:
        return files.listing(lambda: self.folder.descend("."), files.scan, self.path, path, limit)

    def test_types(self) -> None:
        """Files, directories and links are told apart; what is none of them is a file."""
        os.symlink("file", self.at("link"))
        os.mkfifo(self.at("fifo"))
        found = {name: item["type"] for name, item in self.list().items()}
        self.assertEqual(
            found,
            {"file": "FILE", "sub": "DIRECTORY", "link": "SYMLINK", "fifo": "FILE"},
        )

    def test_stat(self) -> None:
        """Size, mode and times of an entry are those of the entry itself."""
        os.chmod(self.at("file"), 0o640)
        os.utime(self.at("file"), (1_000_000_000, 1_100_000_000.5))
        found = self.list()["file"]["stat"]
        self.assertEqual(found["size"], 5)
        self.assertEqual(found["mode"], stat.S_IFREG | 0o640)
        modified = datetime.fromisoformat(found["modified"])
        self.assertEqual(modified, datetime.fromtimestamp(1_100_000_000.5, UTC))
        self.assertIsNotNone(datetime.fromisoformat(found["created"]).tzinfo)

    def test_limit(self) -> None:
        """No more entries are listed than asked for; 0 means all."""
        for number in range(10):
            self.write(str(number))
        self.assertEqual(len(self.list(limit=3)), 3)
        self.assertEqual(len(self.list(limit=0)), 12)
        self.assertEqual(len(self.list(limit=100)), 12)

    def test_json(self) -> None:
        """The JSON is, byte for byte, what the encoder of the library makes of it."""
        for name in ('"', "\\", "\x7f", "\u2028", "\U0001f600", os.fsdecode(b"\xff"), "{}%s"):
            self.write(name)
            os.symlink(name, self.at(f"to {name}"))
        for path in (".", "sub", "sub/deep"):
            text = b"".join(self.pieces(path))
            self.assertEqual(text, json.dumps(json.loads(text)).encode("ascii"))

    def test_pieces(self) -> None:
        """A listing of any length has all entries once, and a piece has a few of them."""
        self.patch(files, "PIECE", 4)
        for number in range(13):
            self.write(f"sub/deep/{number:02}")
            pieces = list(self.pieces("sub/deep"))
            names = [item["name"] for item in json.loads(b"".join(pieces))["items"]]
            self.assertEqual(sorted(names), [f"{made:02}" for made in range(number + 1)])
            self.assertEqual(len(pieces), -(-(number + 3) // 4))
            self.assertLessEqual(max(piece.count(b"name") for piece in pieces), 4)

    def test_given_up(self) -> None:
        """A listing that is given up half-way leaves nothing open."""
        self.patch(files, "PIECE", 2)
        before = descriptors()
        pieces = self.pieces()
        next(pieces)
        self.assertEqual(len(descriptors()), len(before) + 2)
        pieces.close()
        self.assertEqual(descriptors(), before)

    def test_below(self) -> None:
        """One level of a directory is listed, not what is below."""
        self.assertEqual(sorted(self.list("sub")), ["deep", "file"])

    def test_odd_names(self) -> None:
        """Names are listed as they are, whatever their bytes."""
        for raw in (b"\xff\xfe", b"a\nb", b" "):
            self.write(os.fsdecode(raw))
            self.assertIn(os.fsdecode(raw), self.list())

    def test_link_target(self) -> None:
        """The target of a link that stays inside is told, that of another is not."""
        for name, target in (
            ("inside", "sub/file"),
            ("absolute", self.at("sub", "file")),
            ("out", self.outside),
            ("up", ".."),
            ("beside", self.path + "-beside"),
            ("broken", "nowhere"),
        ):
            os.symlink(target, self.at(name))
        found = {name: item["symlink_target"] for name, item in self.list().items()}
        self.assertEqual(found["inside"], "sub/file")
        self.assertEqual(found["absolute"], "sub/file")
        self.assertEqual((found["out"], found["up"], found["beside"]), ("", "", ""))
        self.assertEqual(found["broken"], "nowhere")
        self.assertEqual(found["file"], "")

    def test_link_target_below(self) -> None:
        """The target is told relative to the directory that the link lies in."""
        os.symlink("../../file", self.at("sub", "deep", "link"))
        self.assertEqual(self.list("sub/deep")["link"]["symlink_target"], "../../file")

    def test_link_not_followed(self) -> None:
        """The size of a link is its own, and a link to nowhere can be listed."""
        os.symlink("nowhere", self.at("link"))
        self.assertEqual(self.list()["link"]["stat"]["size"], 7)

    def test_through_link_inside(self) -> None:
        """A link to a directory inside can be listed."""
        os.symlink("sub", self.at("link"))
        self.assertEqual(sorted(self.list("link")), ["deep", "file"])

    def test_out(self) -> None:
        """Nothing outside is listed."""
        for path in ("..", f"../{os.path.basename(self.outside)}", self.link_out(), "out/dir"):
            self.assertRaises(InvalidSubpath, self.list, path)

    def test_missing(self) -> None:
        """A directory that is not there, and a file, cannot be listed."""
        self.assertRaises(FileNotFoundError, self.list, "none")
        self.assertRaises(NotADirectoryError, self.list, "file")

    def test_vanished(self) -> None:
        """What goes away while it is listed is passed over."""

        def vanish(*args: object, **kwargs: object) -> str:
            raise FileNotFoundError

        os.symlink("nowhere", self.at("link"))
        self.patch(os, "readlink", vanish)
        self.assertEqual(sorted(self.list()), ["file", "sub"])

    def test_far_future(self) -> None:
        """A file with a time that no calendar has does not hide the others."""
        odd = os.stat_result(
            (stat.S_IFREG | 0o644, 1, 1, 1, 0, 0, 5, 1 << 55, 1 << 55, 1 << 55),
            {"st_mtime_ns": 10**9 << 55, "st_ctime_ns": -(10**9 << 55)},
        )
        scandir = os.scandir

        class Odd:
            name = "odd"

            def stat(self, follow_symlinks: bool = True) -> os.stat_result:
                return odd

        class Found:
            def __init__(self, descriptor: int) -> None:
                self.found = scandir(descriptor)

            def __enter__(self) -> list[Any]:
                with self.found:
                    return [Odd(), *self.found]

            def __exit__(self, *args: object) -> None:
                pass

        self.patch(os, "scandir", Found)
        self.assertIn("file", self.list())


class MakeDirectoryTests(FilesTestCase):
    def make(self, path: str, parents: bool = False, exist_ok: bool = False) -> None:
        files.make_directory(self.folder, path, parents, exist_ok)

    def test_make(self) -> None:
        """A directory is made."""
        self.make("sub/new")
        self.assertTrue(os.path.isdir(self.at("sub", "new")))

    def test_exists(self) -> None:
        """A directory that exists is an error unless that is said to be good."""
        self.assertRaises(FileExistsError, self.make, "sub")
        self.make("sub", exist_ok=True)
        self.assertRaises(FileExistsError, self.make, ".")
        self.make(".", exist_ok=True)

    def test_file_in_the_way(self) -> None:
        """A file in the place of the directory is always an error, and so is a link to one."""
        os.symlink("file", self.at("link"))
        for path in ("file", "link"):
            for exist_ok in (False, True):
                self.assertRaises(FileExistsError, self.make, path, exist_ok=exist_ok)

    def test_parents(self) -> None:
        """Directories above are made only when that is asked for."""
        self.assertRaises(FileNotFoundError, self.make, "a/b/c")
        self.assertFalse(os.path.exists(self.at("a")))
        self.make("a/b/c", parents=True)
        self.assertTrue(os.path.isdir(self.at("a", "b", "c")))
        self.assertRaises(FileExistsError, self.make, "a/b/c", parents=True)

    def test_out(self) -> None:
        """No directory is made outside."""
        name = os.path.basename(self.outside)
        self.link_out()
        for path in (f"../{name}/new", "out/new", "out/dir/new", "out/a/b", "..", "sub/.."):
            for parents in (False, True):
                self.assertRaises(REFUSED, self.make, path, parents=parents)
        self.assertRaises(REFUSED, self.make, "out", exist_ok=True)
        self.assertOutsideUntouched()


class RenameTests(FilesTestCase):
    def test_file(self) -> None:
        """A file gets another name, and its content goes with it."""
        files.rename(self.folder, "file", "sub/new")
        self.assertEqual(self.read("sub/new"), b"12345")
        self.assertFalse(os.path.exists(self.at("file")))

    def test_directory(self) -> None:
        """A directory is moved with what is in it."""
        files.rename(self.folder, "sub", "moved")
        self.assertEqual(self.read("moved/file"), b"123")

    def test_replaces_file(self) -> None:
        """A file at the target is replaced."""
        files.rename(self.folder, "file", "sub/file")
        self.assertEqual(self.read("sub/file"), b"12345")

    def test_onto_directory(self) -> None:
        """A directory at the target is never replaced, not even an empty one."""
        for source in ("file", "sub/file"):
            self.assertRaises(TargetConflict, files.rename, self.folder, source, "sub/deep")
        os.mkdir(self.at("empty"))
        self.assertRaises(TargetConflict, files.rename, self.folder, "sub", "empty")

    def test_link(self) -> None:
        """A link is moved itself, and a link at the target is replaced itself."""
        self.link_out()
        files.rename(self.folder, "out", "sub/moved")
        self.assertEqual(os.readlink(self.at("sub", "moved")), self.outside)
        files.rename(self.folder, "file", "sub/moved")
        self.assertEqual(self.read("sub/moved"), b"12345")
        self.assertOutsideUntouched()

    def test_missing(self) -> None:
        """What is not there cannot be moved, and nothing goes where there is no directory."""
        self.assertRaises(FileNotFoundError, files.rename, self.folder, "none", "new")
        self.assertRaises(FileNotFoundError, files.rename, self.folder, "none", "sub/deep")
        self.assertRaises(FileNotFoundError, files.rename, self.folder, "file", "none/new")
        self.assertEqual(self.read("file"), b"12345")

    def test_into_itself(self) -> None:
        """A directory cannot be moved into itself."""
        self.assertRaises(OSError, files.rename, self.folder, "sub", "sub/deep/new")

    def test_out(self) -> None:
        """Nothing is moved out, in, or over something outside."""
        name = os.path.basename(self.outside)
        self.link_out()
        for path in (f"../{name}/dir", "out/dir", f"../{name}/new", "out/new", "..", "."):
            self.assertRaises(REFUSED, files.rename, self.folder, "file", path)
            self.assertRaises(REFUSED, files.rename, self.folder, path, "new")
        self.assertEqual(self.read("file"), b"12345")
        self.assertOutsideUntouched()


class DeleteTests(FilesTestCase):
    def delete(self, *paths: str, recursive: bool = False) -> None:
        files.delete(self.folder, "test", list(paths), recursive)

    def test_files(self) -> None:
        """Several files are deleted."""
        self.delete("file", "sub/file")
        self.assertEqual(os.listdir(self.path), ["sub"])
        self.assertEqual(os.listdir(self.at("sub")), ["deep"])

    def test_directory(self) -> None:
        """A directory is deleted only when that is asked for."""
        self.assertRaises(StorageProxyError, self.delete, "sub")
        self.assertTrue(os.path.exists(self.at("sub", "file")))
        self.delete("sub", recursive=True)
        self.assertFalse(os.path.exists(self.at("sub")))

    def test_link(self) -> None:
        """A link is deleted itself, also to a directory, also with all that is in it."""
        for recursive in (False, True):
            self.link_out()
            os.symlink("sub", self.at("inside"))
            self.delete("out", "inside", recursive=recursive)
            self.assertEqual(sorted(os.listdir(self.path)), ["file", "sub"])
            self.assertTrue(os.path.exists(self.at("sub", "file")))
            self.assertOutsideUntouched()

    def test_some_fail(self) -> None:
        """What can be deleted is, and all others are named in the error."""
        with self.assertRaises(StorageProxyError) as caught:
            self.delete("none", "file", "sub")
        self.assertEqual(caught.exception.members["paths"], ["none", "sub"])
        self.assertFalse(os.path.exists(self.at("file")))

    def test_itself(self) -> None:
        """Neither the folder itself nor what is above can be deleted; nothing is, then."""
        for path in (".", "..", "sub/..", "sub/."):
            for recursive in (False, True):
                self.assertRaises(InvalidSubpath, self.delete, "file", path, recursive=recursive)
        self.assertTrue(os.path.exists(self.at("file")))

    def test_out(self) -> None:
        """Nothing outside is deleted."""
        name = os.path.basename(self.outside)
        self.link_out()
        for path in (f"../{name}", f"../{name}/dir", "out/dir"):
            for recursive in (False, True):
                self.assertRaises(StorageProxyError, self.delete, path, recursive=recursive)
        self.assertOutsideUntouched()


class MetadataTests(FilesTestCase):
    def test_none(self) -> None:
        """A folder without metadata has empty metadata."""
        self.assertEqual(files.read_metadata(self.folder), "")

    def test_round_trip(self) -> None:
        """Metadata is kept, told in base64, and can be replaced."""
        for payload in (b"{}", bytes(range(256)), b""):
            files.write_metadata(self.folder, payload)
            self.assertEqual(b64decode(files.read_metadata(self.folder)), payload)
            self.assertEqual(self.read(files.METADATA), payload)

    def test_limit(self) -> None:
        """10 MiB are kept, and more is refused."""
        files.write_metadata(self.folder, b"m" * files.MAX_METADATA)
        self.assertEqual(os.path.getsize(self.at(files.METADATA)), 10 * 1024 * 1024)
        self.assertRaises(
            RequestTooLarge, files.write_metadata, self.folder, b"m" * (files.MAX_METADATA + 1)
        )

    def test_leaves_nothing(self) -> None:
        """No temporary file stays, also when the metadata cannot be written."""
        files.write_metadata(self.folder, b"{}")
        os.unlink(self.at(files.METADATA))
        os.mkdir(self.at(files.METADATA))
        self.assertRaises(TargetConflict, files.write_metadata, self.folder, b"{}")
        self.assertEqual(sorted(os.listdir(self.path)), ["file", files.METADATA, "sub"])

    def test_planted_link(self) -> None:
        """A link in the place of the metadata is neither read nor written through."""
        outside = os.path.join(os.path.dirname(self.outside), "metadata")
        with open(outside, "wb") as file:
            file.write(b"secret")
        os.symlink(outside, self.at(files.METADATA))
        self.assertRaises(REFUSED, files.read_metadata, self.folder)
        files.write_metadata(self.folder, b"new")
        self.assertEqual(self.read(files.METADATA), b"new")
        with open(outside, "rb") as file:
            self.assertEqual(file.read(), b"secret")

    def test_planted_fifo(self) -> None:
        """A FIFO in the place of the metadata makes nobody wait."""
        os.mkfifo(self.at(files.METADATA))
        self.assertRaises(NotRegularFile, files.read_metadata, self.folder)

# -*- test-case-name: tests.test_vfolder -*-
"""
Names of vfolders, where they lie, and paths in them.
"""

from __future__ import annotations

import os
import posixpath
from uuid import UUID

from hypothesis import example, given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from storageproxy.vfolder import UPLOADS, QuotaScopeID, VFolderID, file_name, relative_path
from tests.strategies import (
    QUICK,
    names,
    quota_scopes,
    relative_paths,
    spelled_uuids,
    vfolder_ids,
)

FOLDER = UUID("0123456789abcdef0123456789abcdef")
OWNER = UUID("fedcba98-7654-3210-fedc-ba9876543210")


class IdentifierTests(SynchronousTestCase):
    """Both dialects of vfolder ids."""

    @QUICK
    @given(vfolder_ids())
    def test_round_trip(self, vfid: VFolderID) -> None:
        """An id that we write is an id that we read."""
        self.assertEqual(VFolderID.parse(str(vfid)), vfid)

    @QUICK
    @given(quota_scopes())
    def test_scope_round_trip(self, scope: QuotaScopeID) -> None:
        """The same holds for quota scopes."""
        self.assertEqual(QuotaScopeID.parse(str(scope)), scope)

    @QUICK
    @given(spelled_uuids())
    def test_bare_spellings(self, spelled: tuple[UUID, str]) -> None:
        """A bare id may be written in any way that Python's UUID takes; it is one folder."""
        folder, text = spelled
        self.assertEqual(VFolderID.parse(text), VFolderID(None, folder))

    @QUICK
    @given(
        spelled_uuids(), spelled_uuids(), st.sampled_from(["user", "project", "User", "PROJECT"])
    )
    def test_scoped_spellings(
        self, owner: tuple[UUID, str], folder: tuple[UUID, str], kind: str
    ) -> None:
        """So may both parts of a scoped one, and the kind in any letter case."""
        vfid = VFolderID.parse(f"{kind}:{owner[1]}/{folder[1]}")
        self.assertEqual(vfid, VFolderID(QuotaScopeID(kind.lower(), owner[0]), folder[0]))

    def test_written(self) -> None:
        """Ids are told as the original tells them."""
        self.assertEqual(str(VFolderID(None, FOLDER)), "01234567-89ab-cdef-0123-456789abcdef")
        self.assertEqual(
            str(VFolderID(QuotaScopeID("user", OWNER), FOLDER)),
            "user:fedcba98-7654-3210-fedc-ba9876543210/0123456789abcdef0123456789abcdef",
        )

    def test_layouts(self) -> None:
        """Bare and scoped ids lie where the releases that use them put them."""
        self.assertEqual(
            VFolderID(None, FOLDER).layout, ("01", "23", "456789abcdef0123456789abcdef")
        )
        for kind in ("user", "project"):
            self.assertEqual(
                VFolderID(QuotaScopeID(kind, OWNER), FOLDER).layout,
                ("fedcba9876543210fedcba9876543210", "01", "23", "456789abcdef0123456789abcdef"),
            )

    @QUICK
    @given(vfolder_ids())
    def test_layout_is_plain(self, vfid: VFolderID) -> None:
        """Wherever a folder lies, the names on the way are lower-case hex digits only."""
        self.assertRegex("/".join(vfid.layout), r"\A([0-9a-f]{32}/)?[0-9a-f]{2}/[0-9a-f]{2}/")
        self.assertRegex(vfid.layout[-1], r"\A[0-9a-f]{28}\Z")
        self.assertEqual("".join(vfid.layout[-3:]), vfid.folder.hex)

    def test_layout_of_scope(self) -> None:
        """A folder of a scope lies in the directory of the scope."""
        vfid = VFolderID.parse(f"project:{UUID(int=7)}/{UUID(int=8).hex}")
        assert vfid.scope is not None
        self.assertEqual(vfid.scope.layout, ("0" * 31 + "7",))
        self.assertEqual(vfid.layout[:1], vfid.scope.layout)

    @QUICK
    @given(vfolder_ids(), vfolder_ids())
    def test_layouts_differ(self, one: VFolderID, other: VFolderID) -> None:
        """Two folders share a place only if folder and owner are the same."""
        same = one.folder == other.folder and (
            (one.scope and one.scope.owner) == (other.scope and other.scope.owner)
        )
        self.assertEqual(one.layout == other.layout, same)

    @QUICK
    @given(st.text())
    @example("")
    @example("/")
    @example(f"/{FOLDER}")
    @example(f"{FOLDER}/")
    @example(f"user/{FOLDER}")
    @example(f"user:{OWNER}")
    @example(f"group:{OWNER}/{FOLDER}")
    @example(f"user:{OWNER}/x/{FOLDER}")
    @example(f"user:../{FOLDER}")
    @example(f"user:{OWNER}/..")
    @example("../../../etc")
    @example("0" * 31)
    @example("0" * 33)
    @example("\ud800" * 32)
    @example("\0" * 32)
    @example("g" * 32)
    def test_garbage(self, text: str) -> None:
        """What is no id is refused as such; and nothing that is taken can lie elsewhere."""
        for parse in (VFolderID.parse, QuotaScopeID.parse):
            try:
                parsed = parse(text)
            except ValueError as error:
                self.assertTrue(str(error))
            else:
                self.assertEqual(parse(str(parsed)), parsed)

    def test_refused(self) -> None:
        """Ids with a wrong part are refused."""
        for text in (
            "",
            "/",
            f"/{FOLDER}",
            f"{FOLDER}/",
            f"{FOLDER}/{FOLDER}",
            f"user:{OWNER}",
            f"group:{OWNER}/{FOLDER}",
            f"user:{OWNER}/x/{FOLDER}",
            f"user:{OWNER}/..",
            "0" * 31,
            "0" * 33,
        ):
            self.assertRaises(ValueError, VFolderID.parse, text)


class RelativePathTests(SynchronousTestCase):
    """Paths inside of a vfolder."""

    @QUICK
    @given(relative_paths())
    def test_shortest(self, path: str) -> None:
        """A path in its shortest form stays as it is, in however many ways it is written."""
        self.assertEqual(relative_path(path), path)
        self.assertEqual(relative_path(f"./{path}/"), path)
        self.assertEqual(relative_path(path.replace("/", "/.//")), path)

    def test_root(self) -> None:
        """The folder itself can be named by nothing, or by a dot."""
        for text in ("", ".", "./", "./."):
            self.assertEqual(relative_path(text), ".")

    def test_parents_are_kept(self) -> None:
        """Where .. leads is not guessed here: that is for the kernel to say."""
        self.assertEqual(relative_path("a/../b"), "a/../b")
        self.assertEqual(relative_path("../x"), "../x")

    def test_refused(self) -> None:
        """Absolute paths, and what can be no path at all, are refused."""
        for text in ("/", "/etc/passwd", "//x", "///x", "a\0b", "\0", "\ud800"):
            self.assertRaises(ValueError, relative_path, text)

    @QUICK
    @given(st.text(st.sampled_from("/.\0ab\ud800\udc80 \u00e9"), max_size=12))
    def test_garbage(self, text: str) -> None:
        """Whatever is taken is relative, can be given to the kernel, and means what it meant."""
        try:
            path = relative_path(text)
        except ValueError:
            self.assertTrue(text.startswith("/") or "\0" in text or "\ud800" in text)
        else:
            self.assertNotIn(b"\0", os.fsencode(path))
            self.assertFalse(path.startswith("/"))
            self.assertEqual(relative_path(path), path)
            self.assertEqual(posixpath.normpath(path), posixpath.normpath(text or "."))


class FileNameTests(SynchronousTestCase):
    """Single names."""

    @QUICK
    @given(names())
    def test_names(self, name: str) -> None:
        """Any name that a file can have is taken as it is."""
        self.assertEqual(file_name(name), name)

    def test_refused(self) -> None:
        """What is no name of a file is refused."""
        for text in ("", ".", "..", "/", "a/b", "a/", "/a", "a\0", "\ud800"):
            self.assertRaises(ValueError, file_name, text)

    @QUICK
    @given(st.text())
    def test_garbage(self, text: str) -> None:
        """Nothing but a ValueError comes of what is no name."""
        try:
            self.assertEqual(file_name(text), text)
        except ValueError:
            pass

    def test_uploads(self) -> None:
        """Unfinished uploads lie where nodes of the original look for them."""
        self.assertEqual(UPLOADS, ".upload")

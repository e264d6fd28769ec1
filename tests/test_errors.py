# -*- test-case-name: tests.test_errors -*-
"""
The table of errors.
"""

from __future__ import annotations

import errno
import json
from collections import Counter
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from storageproxy import errors
from storageproxy.errors import StorageProxyError, from_os_error
from tests.strategies import QUICK

TABLE = [
    value
    for value in vars(errors).values()
    if isinstance(value, type) and issubclass(value, StorageProxyError)
]


def make(cls: type[Any]) -> StorageProxyError:
    """One of a class, with as little as it takes."""
    made = cls(17) if cls is errors.RangeNotSatisfiable else cls()
    assert isinstance(made, StorageProxyError)
    return made


class TableTests(SynchronousTestCase):
    """What all of them have in common."""

    def test_complete(self) -> None:
        """The errors that the wire contract names are in the table."""
        self.assertLessEqual(
            {
                "malformed-request",
                "invalid-api-params",
                "unsupported-operation",
                "file-not-found",
                "no-such-upload-session",
                "forbidden",
                "volume/invalid",
                "subpath/invalid",
                "vfolder/not-found",
                "upload-offset-mismatch",
            },
            {cls.suffix for cls in TABLE},
        )

    def test_unique(self) -> None:
        """A program can tell one from another, by its type and by its code."""
        for of in (lambda cls: cls.suffix, lambda cls: cls.error_code):
            count = Counter(map(of, TABLE))
            self.assertEqual([key for key, times in count.items() if times > 1], [])

    def test_status(self) -> None:
        """Each is an error of the client or of the server."""
        for cls in TABLE:
            self.assertTrue(400 <= cls.status <= 599, cls)

    def test_codes(self) -> None:
        """Codes have three parts, which managers split at underscores."""
        for cls in TABLE:
            self.assertRegex(cls.error_code, r"\A[a-z-]+_[a-z-]+_[a-z-]+\Z")
            self.assertRegex(cls.suffix, r"\A[a-z-]+(/[a-z-]+)?\Z")
            self.assertTrue(cls.title)

    def test_documents(self) -> None:
        """
        Each has a JSON document with msg, without which managers of 22.03 fail, and error_code.
        """
        for cls in TABLE:
            error = make(cls)
            document = json.loads(json.dumps(error.document()))
            self.assertEqual(document["status"], cls.status)
            self.assertEqual(document["title"], cls.title)
            self.assertEqual(document["error_code"], cls.error_code)
            self.assertEqual(document["type"], f"https://api.backend.ai/probs/storage/{cls.suffix}")
            self.assertIsInstance(document["msg"], str)
            self.assertTrue(document["msg"])
            self.assertEqual(str(error), error.message)
            for name, value in error.headers.items():
                self.assertIsInstance(name + value, str)

    def test_message(self) -> None:
        """A message of its own takes the place of the title, and members stand beside it."""
        error = errors.VFolderNotFound("No such folder", vfid="x", headers={"X-A": "b"})
        self.assertEqual(error.document()["msg"], "No such folder")
        self.assertEqual(error.document()["title"], "VFolder not found")
        self.assertEqual(error.document()["vfid"], "x")
        self.assertEqual(error.headers, {"X-A": "b"})

    def test_parameters(self) -> None:
        """Wrong parameters are told as data, and in words."""
        error = errors.InvalidParameters.of({"a": "is required", "b": {"c": "is bad"}})
        self.assertEqual(error.status, 400)
        self.assertEqual(error.document()["data"], {"a": "is required", "b": {"c": "is bad"}})
        self.assertIn("a: is required", error.message)

    def test_headers(self) -> None:
        """Those that tell a client what to do have the headers for it."""
        self.assertEqual(errors.RangeNotSatisfiable(5).headers, {"Content-Range": "bytes */5"})
        self.assertEqual(errors.UnsupportedTusVersion().headers, {"Tus-Version": "1.0.0"})
        for cls in TABLE:
            if cls.status == 503:
                self.assertGreater(int(make(cls).headers["Retry-After"]), 0)

    def test_not_shared(self) -> None:
        """Headers that are added to one error are not in the next."""
        headers = {"A": "b"}
        error = errors.Forbidden(headers=headers)
        error.headers["C"] = "d"
        self.assertEqual(headers, {"A": "b"})
        self.assertEqual(errors.Forbidden().headers, {})


class SystemCallTests(SynchronousTestCase):
    """What a failed system call means."""

    def test_known(self) -> None:
        """The statuses of the wire contract."""
        for number, status in {
            errno.ENOSPC: 507,
            errno.EDQUOT: 413,
            errno.ENOENT: 400,
            errno.EEXIST: 400,
            errno.EISDIR: 400,
            errno.ENOTDIR: 400,
            errno.ENOTEMPTY: 400,
            errno.EACCES: 400,
            errno.EPERM: 400,
            errno.ENAMETOOLONG: 400,
            errno.ELOOP: 400,
            errno.EIO: 500,
            errno.EROFS: 500,
            errno.ESTALE: 503,
            errno.ETIMEDOUT: 503,
            errno.EMFILE: 503,
        }.items():
            error = from_os_error(OSError(number, "x"), "local")
            self.assertEqual(error.status, status, errno.errorcode[number])

    def test_told(self) -> None:
        """The file system's own word is told, with its number and the paths in the folder."""
        document = from_os_error(
            FileExistsError(errno.EEXIST, "x", "/secret/host/path"), "local", ["a/b", "c"]
        ).document()
        self.assertEqual(document["msg"], "File exists")
        self.assertEqual(document["errno"], errno.EEXIST)
        self.assertEqual(document["paths"], ["a/b", "c"])
        self.assertNotIn("/secret", json.dumps(document))

    def test_volume(self) -> None:
        """What is the volume's fault names the volume."""
        for number in (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.ESTALE):
            self.assertIn("volume local", from_os_error(OSError(number, "x"), "local").message)

    @QUICK
    @given(
        st.sampled_from(sorted(errno.errorcode)) | st.integers(-(2**31), 2**31 - 1),
        st.lists(st.text(max_size=10), max_size=3),
    )
    def test_any_number(self, number: int, paths: list[str]) -> None:
        """Whatever the number is, there is an error to raise, with a document."""
        error = from_os_error(OSError(number, "x"), "local", iter(paths))
        self.assertIn(error.status, (400, 413, 500, 503, 507))
        self.assertEqual(json.loads(json.dumps(error.document()))["msg"], error.message)

    def test_dead_mount(self) -> None:
        """A client is told what has died, the log also where, and what to do."""
        for number in (errno.ENOTCONN, errno.ECONNABORTED, errno.ESHUTDOWN):
            found = from_os_error(OSError(number, "x", "/mnt/ceph"), "shared")
            self.assertEqual(found.status, 503)
            self.assertRegex(found.message, "volume shared: .*: its mount is dead")
            self.assertIn("unmount /mnt/ceph and mount it again", found.remedy)
            self.assertNotIn("/mnt/ceph", json.dumps(found.document()))
            unnamed = from_os_error(OSError(number, "x"), "shared")
            self.assertIn("unmount it and mount it again", unnamed.remedy)

    def test_all_numbers(self) -> None:
        """None of the numbers that Linux has is left out."""
        for number in errno.errorcode:
            self.assertIsInstance(from_os_error(OSError(number, "x"), "v"), StorageProxyError)

    def test_no_number(self) -> None:
        """An error without a number is one of the backend."""
        for error in (OSError(), OSError("what happened"), TimeoutError(), OSError(0, "nothing")):
            found = from_os_error(error, "local")
            self.assertEqual(found.status, 500)
            self.assertTrue(found.message)

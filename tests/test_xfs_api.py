"""
What managers and clients are told of quotas on XFS.
"""

from __future__ import annotations

import errno
import os
from types import SimpleNamespace
from typing import Any
from uuid import uuid4

from backends.xfs.interfaces import Quotas
from backends.xfs.testing import MemoryKernel, MemoryProjects
from backends.xfs.volume import XFSVolume
from storageproxy import beneath
from tests.harness import APICase, on_all_transports

TUS = {"Tus-Resumable": "1.0.0"}
MEBI = 1 << 20


def vars_of(status: os.statvfs_result) -> Any:
    """The same, to be changed."""
    return SimpleNamespace(
        **{name: getattr(status, name) for name in dir(status) if name.startswith("f_")}
    )


class Enforced:
    """
    A directory that takes only so much, and says of it what XFS does.

    :ivar left: bytes that it still takes; None for any number.
    """

    def __init__(self, case: Any, top: str, root: str) -> None:
        self.left: int | None = None
        self._top, self._root = top, root
        mkdir, pwritev, open_beneath = os.mkdir, os.pwritev, beneath.open_beneath
        fstatvfs_ = os.fstatvfs

        def make(path: str, mode: int = 0o777, *, dir_fd: int | None = None) -> None:
            self._take(dir_fd)
            mkdir(path, mode, dir_fd=dir_fd)

        def write(descriptor: int, buffers: Any, offset: int) -> int:
            if not self._has(descriptor) or self.left is None:
                return pwritev(descriptor, buffers, offset)
            self._take(descriptor)
            taken = b"".join(buffers)[: self.left]
            self.left -= len(taken)
            return pwritev(descriptor, [taken], offset)

        def open_(directory: int, path: str, flags: int, mode: int, resolve: int) -> int:
            if flags & os.O_CREAT:
                self._take(directory)
            return open_beneath(directory, path, flags, mode, resolve)

        def fstatvfs(descriptor: int) -> Any:
            status = vars_of(fstatvfs_(descriptor))
            if self._has(descriptor) and self.left == 0:
                status.f_bavail = 0
            return status

        case.patch(os, "mkdir", make)
        case.patch(os, "pwritev", write)
        case.patch(os, "fstatvfs", fstatvfs)
        case.patch(beneath, "open_beneath", open_)

    def _has(self, descriptor: int | None) -> bool:
        path = os.readlink(f"/proc/self/fd/{descriptor}") if descriptor is not None else ""
        return path.startswith(self._top)

    def _take(self, descriptor: int | None) -> None:
        if self.left == 0 and self._has(descriptor):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


class XFSCase(APICase):
    def begin(self) -> None:
        plain = self.proxy.volume["local"]
        self.kernel = MemoryKernel(plain.path)
        projects = MemoryProjects(self.kernel)
        self.volume = XFSVolume(
            "local",
            plain.path,
            ".",
            plain.threads,
            self.proxy.reactor,
            lambda: projects,
            self.kernel,
        )
        self.proxy.volume["local"] = self.volume
        self.vfid = str(uuid4())
        self.folder = self.proxy.folder(self.vfid)

    async def create(self, **options: Any) -> None:
        answer = await self.rpc("POST", "/folder/create", options=options or None)
        self.assertEqual(answer.status, 204, answer.body)
        self.quota = Enforced(self, str(self.folder), self.volume.path)


class Limits(XFSCase):
    async def test_volumes(self) -> None:
        """A manager learns that vfolders can be limited."""
        [volume, _] = (await self.manager("GET", "/volumes")).json()["volumes"]
        self.assertEqual((volume["backend"], volume["capabilities"]), ("xfs", ["vfolder", "quota"]))

    async def test_create(self) -> None:
        """A vfolder has the limit that it was made with, in any spelling; null is none."""
        for size, expected in (("1g", 2**30), (MEBI, MEBI), ("10MiB", 10 * MEBI), (None, 0)):
            self.vfid = str(uuid4())
            answer = await self.rpc("POST", "/folder/create", options={"quota": size})
            self.assertEqual(answer.status, 204)
            self.assertEqual((await self.rpc("GET", "/volume/quota")).json(), expected)

    async def test_set(self) -> None:
        """What is read is what holds: whole blocks."""
        await self.create()
        for size, expected in (("1g", 2**30), (5000, 8192), (0, 0), ("inf", 0)):
            answer = await self.rpc("PATCH", "/volume/quota", size_bytes=size)
            self.assertEqual((answer.status, answer.body), (204, b""))
            self.assertEqual((await self.rpc("GET", "/volume/quota")).json(), expected)

    async def test_bad(self) -> None:
        """What can be no limit is a 400, and changes nothing."""
        await self.create(quota="1g")
        for size in (-1, "-1", "much", 2**63, 2**80, 1.5, None, [1]):
            answer = await self.rpc("PATCH", "/volume/quota", size_bytes=size)
            self.assert_problem(answer, 400, "invalid-api-params")
            other = str(uuid4())
            if size is not None:
                options = {"quota": size}
                answer = await self.rpc("POST", "/folder/create", vfid=other, options=options)
                self.assert_problem(answer, 400, "invalid-api-params")
                self.assertFalse(self.proxy.folder(other).exists())
        self.assertEqual((await self.rpc("GET", "/volume/quota")).json(), 2**30)

    async def test_missing(self) -> None:
        """The limit of a vfolder that does not exist is a 404."""
        answer = await self.rpc("GET", "/volume/quota")
        self.assert_problem(answer, 404, "vfolder/not-found")
        answer = await self.rpc("PATCH", "/volume/quota", size_bytes=1)
        self.assert_problem(answer, 404, "vfolder/not-found")

    async def test_volume(self) -> None:
        """That of the volume as a whole is a 400 which says so."""
        answer = await self.manager("GET", "/volume/quota", {"volume": "local"})
        self.assert_problem(answer, 400, "unsupported-operation")

    async def test_usage(self) -> None:
        """Usage is what the kernel has counted."""
        await self.create()
        (self.folder / "dir").mkdir()
        (self.folder / "dir" / "file").write_bytes(b"x" * 5000)
        answer = await self.rpc("GET", "/folder/usage")
        self.assertEqual(answer.json(), {"file_count": 2, "used_bytes": 8192})
        answer = await self.rpc("GET", "/folder/used-bytes")
        self.assertEqual(answer.json(), {"used_bytes": 8192})

    async def test_clone(self) -> None:
        """A clone that does not fit into the quota of its target is a 413 that says how much."""
        await self.create()
        (self.folder / "file").write_bytes(b"x" * 9000)
        target = str(uuid4())
        await self.rpc("POST", "/folder/create", vfid=target, options={"quota": 8192})
        params = {
            "src_volume": "local",
            "src_vfid": self.vfid,
            "dst_vfid": target,
        }
        answer = await self.manager("POST", "/folder/clone", params)
        problem = self.assert_problem(answer, 413, "quota-exceeded")
        self.assertIn("at least 9000", problem["msg"])
        self.assertIn("8192", problem["msg"])
        self.assertEqual(list(self.proxy.folder(target).iterdir()), [])

    async def test_unusable(self) -> None:
        """A volume where nothing can be limited says what to do; the others go on."""
        self.kernel.state = Quotas.OFF
        answer = await self.rpc("POST", "/folder/create")
        problem = self.assert_problem(answer, 500, "backend/failure")
        self.assertIn("pquota", problem["msg"])
        answer = await self.rpc("GET", "/folder/fs-usage", volume="other")
        self.assertEqual(answer.status, 200)
        info = (await self.rpc("GET", "/volume/hwinfo")).json()
        self.assertEqual(info["status"], "unavailable")


class Full(XFSCase):
    async def test_upload(self) -> None:
        """What does not fit is a 413, and the upload goes on from there when there is room."""
        await self.create()
        content = os.urandom(5000)
        path = await self.upload_path("file", len(content))
        self.assertEqual((await self.patch_at(path, 0, content[:1000])).status, 204)
        self.quota.left = 1234
        answer = await self.patch_at(path, 1000, content[1000:])
        self.assert_problem(answer, 413, "quota-exceeded")
        answer = await self.client("HEAD", path, TUS)
        self.assertEqual((answer.status, answer.headers["upload-offset"]), (200, "2234"))
        answer = await self.patch_at(path, 2234, content[2234:])
        self.assert_problem(answer, 413, "quota-exceeded")
        self.quota.left = None
        answer = await self.patch_at(path, 2234, content[2234:])
        self.assertEqual((answer.status, answer.headers["upload-offset"]), (204, "5000"))
        self.assertEqual((self.folder / "file").read_bytes(), content)

    async def test_large_upload(self) -> None:
        """So is what does not fit of a body of several megabytes."""
        await self.create()
        content = os.urandom(3 * MEBI)
        path = await self.upload_path("file", len(content))
        self.quota.left = 2 * MEBI + 17
        answer = await self.patch_at(path, 0, content)
        self.assert_problem(answer, 413, "quota-exceeded")
        offset = int((await self.client("HEAD", path, TUS)).headers["upload-offset"])
        self.assertEqual(offset, 2 * MEBI + 17)
        self.quota.left = None
        self.assertEqual((await self.patch_at(path, offset, content[offset:])).status, 204)
        self.assertEqual((self.folder / "file").read_bytes(), content)

    async def test_checksum(self) -> None:
        """An upload with checksums keeps its offset when not even a note can be made."""
        await self.create()
        path = await self.upload_path("file", 6)
        self.quota.left = 0
        headers = {"Upload-Checksum": "sha1 q7fZ+iFAj2ieBqV/fYt1ed+6KQQ="}
        answer = await self.patch_at(path, 0, b"abc", headers)
        self.assert_problem(answer, 413, "quota-exceeded")
        answer = await self.client("HEAD", path, TUS)
        self.assertEqual((answer.status, answer.headers["upload-offset"]), (200, "0"))

    async def test_parents(self) -> None:
        """A whole file for whose directory there is no room gets its name when there is."""
        await self.create()
        path = await self.upload_path("some/dir/file", 3)
        self.assertEqual((await self.patch_at(path, 0, b"ab")).status, 204)
        self.quota.left = 1
        answer = await self.patch_at(path, 2, b"c")
        self.assert_problem(answer, 413, "quota-exceeded")
        self.quota.left = None
        answer = await self.client("HEAD", path, TUS)
        self.assertEqual((answer.status, answer.headers["upload-offset"]), (200, "3"))
        self.assertEqual((self.folder / "some" / "dir" / "file").read_bytes(), b"abc")

    async def test_other_calls(self) -> None:
        """In a full vfolder nothing can be made; the rest works."""
        await self.create()
        (self.folder / "file").write_bytes(b"abc")
        self.quota.left = 0
        answer = await self.rpc("POST", "/folder/file/upload", relpath="new", size=3)
        self.assert_problem(answer, 413, "quota-exceeded")
        answer = await self.rpc("POST", "/folder/file/mkdir", relpath=["a", "b"])
        results = self.assert_problem(answer, 413, "quota-exceeded")["results"]
        self.assertEqual([item["item"] for item in results["failed"]], ["a", "b"])
        self.assertIn("quota", results["failed"][0]["msg"])
        self.assertEqual(results["success"], [])
        answer = await self.rpc("POST", "/folder/file/mkdir", relpath=["a", "../b"])
        self.assertEqual(answer.status, 422)
        answer = await self.rpc("POST", "/folder/metadata", payload="YWJj")
        self.assert_problem(answer, 413, "quota-exceeded")
        answer = await self.rpc("POST", "/folder/file/list", relpath=".")
        self.assertEqual([item["name"] for item in answer.json()["items"]], ["file"])
        answer = await self.rpc("POST", "/folder/file/rename", relpath="file", new_name="other")
        self.assertEqual(answer.status, 204)
        answer = await self.rpc("POST", "/folder/file/fetch", relpath="other")
        self.assertEqual(answer.body, b"abc")
        answer = await self.rpc("POST", "/folder/file/delete", relpaths=["other"])
        self.assertEqual(answer.status, 200)
        self.assertEqual(list(self.folder.iterdir()), [])

    async def test_full_disk(self) -> None:
        """A disk that is full is a 507, as everywhere."""
        await self.create()
        path = await self.upload_path("file", 3)
        self.quota.left = 0
        self.patch(os, "fstatvfs", lambda _: SimpleNamespace(f_bavail=0, f_favail=0))
        self.assert_problem(await self.patch_at(path, 0, b"abc"), 507, "disk-full")
        answer = await self.rpc("POST", "/folder/file/mkdir", relpath="a")
        self.assert_problem(answer, 507, "disk-full")


for _mixin in (Limits, Full):
    globals().update(on_all_transports(_mixin))
    # What has no transport is no test case.
    del globals()[_mixin.__name__]
del _mixin, XFSCase

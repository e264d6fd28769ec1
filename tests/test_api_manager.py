"""
Tests for :mod:`storageproxy.api.manager`, in memory and over TCP and TLS.
"""

from __future__ import annotations

import json
import os
import threading
from base64 import b64encode
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

from attrs import evolve
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase
from zope.interface import implementer
from zope.interface.verify import verifyObject

import storageproxy
from backends.vfs import VFSBackend, VFSVolume
from storageproxy import config, files
from storageproxy.api.manager import ManagerAPI
from storageproxy.beneath import Directory
from storageproxy.disposal import MOMENT
from storageproxy.errors import BackendFailure
from storageproxy.files import MAX_METADATA
from storageproxy.interfaces import IPerformanceMetric, IQuota, IVolumeQuota
from storageproxy.threads import VolumeThreads
from storageproxy.tokens import DownloadToken, UploadToken
from storageproxy.transfer import producers
from storageproxy.transfer.bodies import BLOCK
from storageproxy.trees import TooSlow
from storageproxy.vfolder import VFolderID
from storageproxy.volumes import Volumes
from tests.harness import (
    AUTH,
    LIFETIME,
    LISTING,
    MANAGER_SECRET,
    MAX_UPLOAD,
    NOW,
    Answer,
    APICase,
    Descriptors,
    MemoryCase,
    MemoryProxy,
    Wire,
    on_all_transports,
)

SCOPED = "user:12345678-1234-1234-1234-123456789abc"


class Status(APICase):
    async def test_without_the_secret(self) -> None:
        """Supervisors have no secret, and may ask whether the daemon is there."""
        for path in ("/status", "/livez", "/readyz", "/health"):
            answer = await self.manager("GET", path, secret=None)
            self.assertEqual(answer.status, 200)
            self.assertEqual(
                answer.json(),
                {
                    "status": "ok",
                    "type": "manager-facing",
                    "storage-proxy": storageproxy.__version__,
                },
            )

    async def test_draining(self) -> None:
        """A daemon that is about to end is alive, but wants no more work."""
        self.proxy.manager.draining = True
        self.assertEqual((await self.manager("GET", "/readyz", secret=None)).status, 503)
        self.assertEqual((await self.manager("GET", "/livez", secret=None)).status, 200)

    async def test_with_the_secret(self) -> None:
        """A manager asks whether the daemon is there, and its secret right."""
        answer = await self.manager("GET", "/")
        self.assertEqual((answer.status, answer.json()["status"]), (200, "ok"))

    async def test_wrong_secret(self) -> None:
        """A wrong or missing secret is a 403 before anything else, also for unknown paths."""
        for secret in (None, "", "wrong", MANAGER_SECRET + "x", MANAGER_SECRET[:-1], "é"):
            for path in ("/", "/volumes", "/nowhere", "/folder/create"):
                answer = await self.manager("GET", path, secret=secret)
                self.assert_problem(answer, 403, "forbidden")

    async def test_unknown_route(self) -> None:
        """Who has the secret is told of unknown paths and methods, in JSON."""
        self.assert_problem(await self.manager("GET", "/nowhere"), 404, "url-not-found")
        self.assert_problem(await self.manager("GET", "/volumes/"), 404, "url-not-found")
        answer = await self.manager("PUT", "/volumes")
        self.assert_problem(answer, 405, "method-not-allowed")
        self.assertEqual(answer.headers["allow"].replace("HEAD", "").strip(", "), "GET")
        self.assertEqual((await self.manager("HEAD", "/volumes")).status, 405)

    async def test_no_body_wanted(self) -> None:
        """Routes without parameters take no body, as in the original."""
        for path in ("/", "/volumes"):
            answer = await self.manager("GET", path, {})
            self.assert_problem(answer, 400, "malformed-request")


class VolumeRoutes(APICase):
    async def test_volumes(self) -> None:
        """A manager learns which volumes there are, and what they can do."""
        answer = await self.manager("GET", "/volumes")
        self.assertEqual(answer.headers["content-type"], "application/json; charset=utf-8")
        self.assertEqual(
            answer.json(),
            {
                "volumes": [
                    {
                        "name": name,
                        "backend": "vfs",
                        "path": self.proxy.volume[name].path,
                        "fsprefix": ".",
                        "capabilities": ["vfolder"],
                    }
                    for name in ("local", "other")
                ]
            },
        )

    async def test_hardware_info(self) -> None:
        """A plain volume is healthy."""
        answer = await self.manager("GET", "/volume/hwinfo", {"volume": "local"})
        self.assertEqual(answer.json(), {"status": "healthy", "status_info": None, "metadata": {}})

    async def test_unsupported(self) -> None:
        """What a backend cannot do is a 400 that says so."""
        metric = await self.manager("GET", "/volume/performance-metric", {"volume": "local"})
        self.assert_problem(metric, 400, "unsupported-operation")
        params = {"volume": "local", "vfid": self.vfid}
        quota = await self.manager("GET", "/volume/quota", params)
        self.assert_problem(quota, 400, "unsupported-operation")
        quota = await self.manager("PATCH", "/volume/quota", {**params, "size_bytes": "1g"})
        self.assert_problem(quota, 400, "unsupported-operation")

    async def test_supported(self) -> None:
        """A volume with quotas and metrics has its capabilities, and answers for them."""
        metric = {"iops_read": 1}
        limits: dict[VFolderID, int] = {}

        @implementer(IQuota, IPerformanceMetric)
        class Able(VFSVolume):
            async def get_quota(self, vfid: VFolderID) -> int:
                return limits[vfid]

            async def set_quota(self, vfid: VFolderID, size: int) -> None:
                limits[vfid] = size

            async def performance_metric(self) -> dict[str, Any]:
                return metric

        plain = self.proxy.volume["local"]
        self.proxy.volume["local"] = Able("local", plain.path, ".", plain.threads)
        params = {"volume": "local", "vfid": self.vfid}
        answer = await self.manager("PATCH", "/volume/quota", {**params, "size_bytes": "1g"})
        self.assertEqual((answer.status, answer.body), (204, b""))
        answer = await self.manager("GET", "/volume/quota", params)
        self.assertEqual(answer.json(), 2**30)
        self.assertEqual(list(limits), [VFolderID.parse(self.vfid)])
        answer = await self.manager("GET", "/volume/performance-metric", {"volume": "local"})
        self.assertEqual(answer.json(), {"metric": metric})
        answer = await self.manager("GET", "/volumes")
        self.assertEqual(
            answer.json()["volumes"][0]["capabilities"], ["vfolder", "quota", "metric"]
        )
        answer = await self.manager("GET", "/volume/quota", {"volume": "local"})
        self.assert_problem(answer, 400, "unsupported-operation")

    async def test_volume_quota(self) -> None:
        """A volume that is limited as a whole has no capability of limiting vfolders."""
        limits = [7]

        @implementer(IVolumeQuota)
        class Limited(VFSVolume):
            async def get_volume_quota(self) -> int:
                return limits[-1]

            async def set_volume_quota(self, size: int) -> None:
                limits.append(size)

        plain = self.proxy.volume["local"]
        volume = Limited("local", plain.path, ".", plain.threads)
        verifyObject(IVolumeQuota, volume)
        self.proxy.volume["local"] = volume
        for params in ({"volume": "local"}, {"volume": "local", "vfid": None}):
            answer = await self.manager("PATCH", "/volume/quota", {**params, "size_bytes": "1g"})
            self.assertEqual((answer.status, answer.body), (204, b""))
            answer = await self.manager("GET", "/volume/quota", params)
            self.assertEqual(answer.json(), 2**30)
        params = {"volume": "local", "vfid": self.vfid}
        answer = await self.manager("GET", "/volume/quota", params)
        self.assert_problem(answer, 400, "unsupported-operation")
        answer = await self.manager("PATCH", "/volume/quota", {**params, "size_bytes": 5})
        self.assert_problem(answer, 400, "unsupported-operation")
        self.assertEqual(limits, [7, 2**30, 2**30])
        answer = await self.manager("GET", "/volumes")
        self.assertEqual(answer.json()["volumes"][0]["capabilities"], ["vfolder"])

    async def test_fs_usage(self) -> None:
        """The size of the file system, and what is taken of it."""
        answer = await self.manager("GET", "/folder/fs-usage", {"volume": "local"})
        found = answer.json()
        status = os.statvfs(self.folder)
        self.assertEqual(found["capacity_bytes"], status.f_frsize * status.f_blocks)
        self.assertGreater(found["used_bytes"], 0)

    async def test_unknown_volume(self) -> None:
        """FIX 22: a volume that is none is a 400 for every route."""
        for method, path, params in (
            ("GET", "/volume/hwinfo", {}),
            ("GET", "/folder/fs-usage", {}),
            ("GET", "/folder/usage", {}),
            ("GET", "/folder/mount", {}),
            ("POST", "/folder/create", {}),
            ("POST", "/folder/delete", {}),
            ("POST", "/folder/file/list", {"relpath": "."}),
            ("POST", "/folder/file/download", {"relpath": "x"}),
            ("POST", "/folder/file/upload", {"relpath": "x", "size": 1}),
        ):
            answer = await self.rpc(method, path, **{"volume": "nowhere", **params})
            problem = self.assert_problem(answer, 400, "volume/invalid")
            self.assertIn("nowhere", problem["msg"])


class Parameters(APICase):
    async def test_malformed(self) -> None:
        """FIX 22: a body that is no JSON object is a 400."""
        for body in (b"{", b"[]", b'"x"', b"\xff", b"[" * 100000):
            answer = await self.manager("POST", "/folder/create", body=body)
            self.assert_problem(answer, 400, "malformed-request")

    async def test_missing(self) -> None:
        """Every parameter that is missing is named."""
        answer = await self.manager("POST", "/folder/file/list", {})
        problem = self.assert_problem(answer, 400, "invalid-api-params")
        self.assertEqual(set(problem["data"]), {"volume", "vfid", "relpath"})

    async def test_no_body(self) -> None:
        """No body is no parameters."""
        answer = await self.manager("POST", "/folder/create")
        self.assert_problem(answer, 400, "invalid-api-params")

    async def test_wrong(self) -> None:
        """Every parameter that is wrong is named."""
        for name, wrong in (
            ("volume", " "),
            ("volume", 1),
            ("vfid", "x"),
            ("vfid", "../x"),
            ("vfid", None),
            ("relpath", "/etc"),
            ("relpath", "a\0b"),
            ("relpath", "\ud800"),
            ("relpath", ["a"]),
            ("relpath", None),
        ):
            answer = await self.rpc("POST", "/folder/file/list", **{"relpath": ".", name: wrong})
            problem = self.assert_problem(answer, 400, "invalid-api-params")
            self.assertEqual(set(problem["data"]), {name})

    async def test_unknown_keys(self) -> None:
        """Keys of other eras are ignored."""
        answer = await self.rpc("POST", "/folder/file/list", relpath=".", is_dir=True, later={})
        self.assertEqual(answer.status, 200)

    async def test_any_content_type(self) -> None:
        """Nobody looks at the content type of parameters."""
        params = {"volume": "local", "vfid": self.vfid}
        for content_type in ("text/plain", "application/x-www-form-urlencoded"):
            headers = {"Content-Type": content_type}
            answer = await self.manager("GET", "/folder/usage", params, headers)
            self.assertEqual(answer.status, 200)

    async def test_query_is_ignored(self) -> None:
        """Parameters are in the body, also those of a GET."""
        answer = await self.manager("GET", f"/folder/usage?volume=local&vfid={self.vfid}")
        self.assert_problem(answer, 400, "invalid-api-params")

    async def test_too_large(self) -> None:
        """Parameters of more than 1 MiB are a 413."""
        body = json.dumps({"volume": "x" * 1024 * 1024}).encode()
        answer = await self.manager("POST", "/folder/create", body=body)
        self.assert_problem(answer, 413, "request-too-large")

    async def test_ids_of_all_kinds(self) -> None:
        """Ids in every spelling and dialect lead to their places on disk."""
        digits = self.vfid.replace("-", "")
        for spelling in (self.vfid, digits, self.vfid.upper(), f"{{{self.vfid}}}"):
            answer = await self.rpc("GET", "/folder/mount", vfid=spelling)
            self.assertEqual(answer.json(), {"path": str(self.folder)})
        answer = await self.rpc("POST", "/folder/create", vfid=f"{SCOPED}/{digits}")
        self.assertEqual(answer.status, 204)
        answer = await self.rpc("GET", "/folder/mount", vfid=f"{SCOPED}/{digits}")
        scope = "12345678123412341234123456789abc"
        self.assertEqual(
            answer.json()["path"],
            f"{self.proxy.volume['local'].path}/{scope}/{digits[:2]}/{digits[2:4]}/{digits[4:]}",
        )


class Folders(APICase):
    async def test_create(self) -> None:
        """A vfolder is made where both dialects have it, with a 204."""
        vfid = str(uuid4())
        answer = await self.rpc("POST", "/folder/create", vfid=vfid, options=None)
        self.assertEqual((answer.status, answer.body), (204, b""))
        self.assertNotIn("content-length", answer.headers)
        self.assertTrue(self.proxy.folder(vfid).is_dir())

    async def test_create_options(self) -> None:
        """Quotas that a backend has not, and options of later eras, are no mistake."""
        for options in ({"quota": "1g"}, {"quota": None}, {"initial_max_size": 1}, {}):
            answer = await self.rpc("POST", "/folder/create", vfid=str(uuid4()), options=options)
            self.assertEqual(answer.status, 204)

    async def test_create_mode(self) -> None:
        """A mode is kept as it is given, and one that is none is refused."""
        vfid = str(uuid4())
        await self.rpc("POST", "/folder/create", vfid=vfid, mode=0o777)
        self.assertEqual(self.proxy.folder(vfid).stat().st_mode & 0o7777, 0o777)
        for mode in (-1, 0o1000, "x"):
            answer = await self.rpc("POST", "/folder/create", vfid=str(uuid4()), mode=mode)
            self.assert_problem(answer, 400, "invalid-api-params")

    async def test_create_twice(self) -> None:
        """FIX 22: a vfolder that is there is a 409."""
        answer = await self.rpc("POST", "/folder/create")
        problem = self.assert_problem(answer, 409, "vfolder/already-exists")
        self.assertEqual(problem["vfid"], self.vfid)

    async def test_delete(self) -> None:
        """A deleted vfolder is gone, and so are its empty prefixes and, soon, its contents."""
        (self.folder / "dir").mkdir()
        (self.folder / "dir" / "file").write_bytes(b"x")
        answer = await self.rpc("POST", "/folder/delete")
        self.assertEqual((answer.status, answer.body), (204, b""))
        self.assertFalse(self.folder.exists())
        await self.proxy.settle()
        self.assertFalse(self.folder.parent.parent.exists())
        trash = Path(self.proxy.volume["local"].path, ".storage-proxy", "trash")
        self.assertEqual(list(trash.iterdir()), [])

    async def test_delete_again(self) -> None:
        """FIX 23: deleting what is gone, or never was, is a success."""
        for vfid in (self.vfid, self.vfid, str(uuid4()), f"{SCOPED}/{uuid4().hex}"):
            answer = await self.rpc("POST", "/folder/delete", vfid=vfid)
            self.assertEqual(answer.status, 204)

    async def test_delete_neighbours(self) -> None:
        """FIX 23: a vfolder with the same prefix stays."""
        neighbour = self.folder.parent / ("0" * 28)
        neighbour.mkdir()
        await self.rpc("POST", "/folder/delete")
        self.assertTrue(neighbour.is_dir())

    async def test_usage(self) -> None:
        """Files and bytes are counted, and links not followed."""
        (self.folder / "dir").mkdir()
        (self.folder / "dir" / "a").write_bytes(b"12345")
        (self.folder / "b").write_bytes(b"123")
        answer = await self.rpc("GET", "/folder/usage")
        found = answer.json()
        self.assertEqual(set(found), {"file_count", "used_bytes"})
        self.assertGreaterEqual(found["file_count"], 2)
        self.assertGreaterEqual(found["used_bytes"], 8)
        (self.folder / "c").write_bytes(b"1")
        more = (await self.rpc("GET", "/folder/usage")).json()
        self.assertEqual(more["file_count"], found["file_count"] + 1)
        self.assertEqual(more["used_bytes"], found["used_bytes"] + 1)

    async def test_usage_too_slow(self) -> None:
        """A vfolder with too many files to count says -1, as in the original."""

        async def too_slow(*_: object) -> None:
            raise TooSlow

        self.patch(VFSVolume, "usage", too_slow)
        answer = await self.rpc("GET", "/folder/usage")
        self.assertEqual(answer.json(), {"file_count": -1, "used_bytes": -1})

    async def test_used_bytes(self) -> None:
        """Bytes alone can be asked for."""
        (self.folder / "a").write_bytes(bytes(1000))
        answer = await self.rpc("GET", "/folder/used-bytes")
        self.assertEqual(set(answer.json()), {"used_bytes"})
        self.assertGreaterEqual(answer.json()["used_bytes"], 1000)

    async def test_usage_of_loops(self) -> None:
        """FIX 21: links in a loop, or out of the vfolder, break no count."""
        (self.folder / "a").write_bytes(b"12345")
        before = (await self.rpc("GET", "/folder/usage")).json()
        (self.folder / "loop").symlink_to("loop")
        (self.folder / "up").symlink_to("..")
        (self.folder / "root").symlink_to("/")
        after = await self.rpc("GET", "/folder/usage")
        self.assertEqual(after.status, 200)
        grown = after.json()["used_bytes"] - before["used_bytes"]
        self.assertLessEqual(grown, 100)
        self.assertEqual((await self.rpc("GET", "/folder/used-bytes")).status, 200)

    async def test_mount(self) -> None:
        """A manager is told the root of a vfolder, with a subpath also."""
        for subpath in (".", "dir", "not/there"):
            answer = await self.rpc("GET", "/folder/mount", subpath=subpath)
            self.assertEqual((answer.status, answer.json()), (200, {"path": str(self.folder)}))

    async def test_mount_missing(self) -> None:
        """A vfolder that is none is the 400 that a manager of 22.03 makes an error of."""
        vfid = str(uuid4())
        answer = await self.rpc("GET", "/folder/mount", vfid=vfid)
        problem = self.assert_problem(answer, 400, "invalid-api-params")
        self.assertEqual((problem["msg"], problem["vfid"]), ("VFolder not found", vfid))

    async def test_mount_outside(self) -> None:
        """A subpath that leads out is the 400 that a manager of 22.03 makes an error of."""
        (self.folder / "link").symlink_to("/")
        for subpath in ("..", "../x", "link/etc", "/etc", "a/../../.."):
            answer = await self.rpc("GET", "/folder/mount", subpath=subpath)
            problem = self.assert_problem(answer, 400, "invalid-api-params")
            self.assertEqual(problem["msg"], "Invalid vfolder subpath")
            self.assertEqual((problem["vfid"], problem["subpath"]), (self.vfid, subpath))

    async def test_missing_folder(self) -> None:
        """FIX 22: what is done in a vfolder that is none is a 404."""
        for method, path, params in (
            ("GET", "/folder/usage", {}),
            ("GET", "/folder/used-bytes", {}),
            ("GET", "/folder/metadata", {}),
            ("POST", "/folder/file/list", {"relpath": "."}),
            ("POST", "/folder/file/mkdir", {"relpath": "a"}),
            ("POST", "/folder/file/fetch", {"relpath": "a"}),
            ("POST", "/folder/file/rename", {"relpath": "a", "new_name": "b"}),
            ("POST", "/folder/file/move", {"src_relpath": "a", "dst_relpath": "b"}),
            ("POST", "/folder/file/delete", {"relpaths": ["a"]}),
            ("POST", "/folder/file/upload", {"relpath": "a", "size": 1}),
        ):
            answer = await self.rpc(method, path, vfid=str(uuid4()), **params)
            self.assert_problem(answer, 404, "vfolder/not-found")


class Clones(APICase):
    async def clone(self, **changes: Any) -> Answer:
        self.target = str(uuid4())
        params = {
            "src_volume": "local",
            "src_vfid": self.vfid,
            "dst_volume": "local",
            "dst_vfid": self.target,
            **changes,
        }
        return await self.manager("POST", "/folder/clone", params)

    def begin(self) -> None:
        super().begin()
        (self.folder / "dir").mkdir()
        (self.folder / "dir" / "file").write_bytes(b"content")

    async def test_clone(self) -> None:
        """A clone is a copy, and its answer names a task for the managers that want one."""
        answer = await self.clone()
        self.assertEqual(answer.status, 200)
        UUID(answer.json()["bgtask_id"])
        copy = self.proxy.folder(self.target)
        self.assertEqual((copy / "dir" / "file").read_bytes(), b"content")

    async def test_another_volume(self) -> None:
        """A clone can go to another volume; without one it stays on its own."""
        await self.clone(dst_volume="other")
        copy = self.proxy.folder(self.target, "other")
        self.assertEqual((copy / "dir" / "file").read_bytes(), b"content")
        await self.clone(dst_volume=None)
        self.assertTrue(self.proxy.folder(self.target).is_dir())

    async def test_existing_target(self) -> None:
        """A clone goes into a vfolder that is there, and what is in it stays."""
        target = self.proxy.make_folder()
        (self.proxy.folder(target) / "old").write_bytes(b"old")
        answer = await self.clone(dst_vfid=target)
        self.assertEqual(answer.status, 200)
        names = {path.name for path in self.proxy.folder(target).iterdir()}
        self.assertEqual(names, {"old", "dir"})

    async def test_links(self) -> None:
        """FIX 28: links are copied as links, broken ones too; nothing outside is copied in."""
        secret = self.proxy.root / "secret"
        secret.write_bytes(b"secret")
        (self.folder / "out").symlink_to(secret.resolve())
        (self.folder / "broken").symlink_to("nowhere")
        self.assertEqual((await self.clone()).status, 200)
        copy = self.proxy.folder(self.target)
        self.assertEqual(os.readlink(copy / "out"), str(secret.resolve()))
        self.assertEqual(os.readlink(copy / "broken"), "nowhere")

    async def test_missing(self) -> None:
        """FIX 22: the clone of nothing is a 404, and makes nothing."""
        answer = await self.clone(src_vfid=str(uuid4()))
        self.assert_problem(answer, 404, "vfolder/not-found")
        self.assertFalse(self.proxy.folder(self.target).exists())

    async def test_itself(self) -> None:
        """A vfolder is not cloned into itself."""
        self.assert_problem(await self.clone(dst_vfid=self.vfid), 400, "invalid-api-params")

    async def test_failure_removes_what_was_made(self) -> None:
        """FIX 28: a clone that fails leaves no part, and takes no vfolder that was there."""

        def broken(*args: Any) -> None:
            raise OSError(5, "Input/output error")

        self.patch(VFSVolume, "_copy", broken)
        self.assert_problem(await self.clone(), 500, "backend/failure")
        self.assertFalse(self.proxy.folder(self.target).exists())
        there = self.proxy.make_folder()
        self.assert_problem(await self.clone(dst_vfid=there), 500, "backend/failure")
        self.assertTrue(self.proxy.folder(there).is_dir())


class MetadataRoutes(APICase):
    async def test_kept(self) -> None:
        """What is kept with a vfolder comes back, and lies where the original's backends look."""
        answer = await self.rpc("GET", "/folder/metadata")
        self.assertEqual(answer.json(), {"status": "ok", "payload": ""})
        content = bytes(range(256))
        payload = b64encode(content).decode()
        answer = await self.rpc("POST", "/folder/metadata", payload=payload)
        self.assertEqual((answer.status, answer.json()), (200, {"status": "ok"}))
        answer = await self.rpc("GET", "/folder/metadata")
        self.assertEqual(answer.json(), {"status": "ok", "payload": payload})
        self.assertEqual((self.folder / "metadata.json").read_bytes(), content)

    async def test_large(self) -> None:
        """10 MiB are taken, and not a byte more."""
        for size, status in ((MAX_METADATA, 200), (MAX_METADATA + 1, 413)):
            payload = b64encode(bytes(size)).decode()
            answer = await self.rpc("POST", "/folder/metadata", payload=payload)
            self.assertEqual(answer.status, status)

    async def test_no_base64(self) -> None:
        """What is no base64 is a 400 that names it."""
        for payload in ("%", "é", 7, None):
            answer = await self.rpc("POST", "/folder/metadata", payload=payload)
            problem = self.assert_problem(answer, 400, "invalid-api-params")
            self.assertEqual(set(problem["data"]), {"payload"})

    async def test_link(self) -> None:
        """Metadata is neither read nor written through a link."""
        secret = self.proxy.root / "secret"
        secret.write_bytes(b"secret")
        (self.folder / "metadata.json").symlink_to(secret.resolve())
        answer = await self.rpc("GET", "/folder/metadata")
        self.assertNotIn(b64encode(b"secret"), answer.body)
        await self.rpc("POST", "/folder/metadata", payload="AAAA")
        self.assertEqual(secret.read_bytes(), b"secret")


class Files(APICase):
    def begin(self) -> None:
        super().begin()
        (self.folder / "dir").mkdir()
        (self.folder / "file").write_bytes(b"content")

    async def test_list(self) -> None:
        """A listing has what managers of every era read, in their formats."""
        os.utime(self.folder / "file", ns=(0, 1_600_000_000_500_000_000))
        os.utime(self.folder / "dir", (0, 1_600_000_000))
        (self.folder / "link").symlink_to("dir")
        answer = await self.rpc("POST", "/folder/file/list", relpath="")
        items = {item["name"]: item for item in answer.json()["items"]}
        self.assertEqual(
            {name: item["type"] for name, item in items.items()},
            {"dir": "DIRECTORY", "file": "FILE", "link": "SYMLINK"},
        )
        status = (self.folder / "file").stat()
        found = items["file"]["stat"]
        self.assertEqual(set(found), {"mode", "size", "created", "modified"})
        self.assertEqual((found["mode"], found["size"]), (status.st_mode, 7))
        self.assertEqual(found["modified"], "2020-09-13T12:26:40.500000+00:00")
        self.assertEqual(items["dir"]["stat"]["modified"], "2020-09-13T12:26:40+00:00")
        self.assertEqual(items["link"]["symlink_target"], "dir")
        self.assertEqual(items["file"]["symlink_target"], "")

    async def test_list_below(self) -> None:
        """A listing is one level, of the directory asked for."""
        (self.folder / "dir" / "sub" / "deep").mkdir(parents=True)
        answer = await self.rpc("POST", "/folder/file/list", relpath="./dir/")
        self.assertEqual([item["name"] for item in answer.json()["items"]], ["sub"])

    async def test_list_is_cut(self) -> None:
        """A listing is cut at the limit, and says nothing of it."""
        for number in range(LISTING + 5):
            (self.folder / "dir" / str(number)).touch()
        answer = await self.rpc("POST", "/folder/file/list", relpath="dir")
        self.assertEqual(len(answer.json()["items"]), LISTING)

    async def test_list_in_pieces(self) -> None:
        """A long listing is sent while it is made; a short one has a length."""
        for number in range(40):
            (self.folder / "dir" / str(number)).touch()
        self.proxy.manager._scandir_limit = 0
        whole = await self.rpc("POST", "/folder/file/list", relpath="dir")
        self.assertEqual(whole.headers["content-length"], str(len(whole.body)))
        self.patch(files, "PIECE", 4)
        answer = await self.rpc("POST", "/folder/file/list", relpath="dir")
        self.assertEqual(answer.status, 200)
        self.assertEqual(answer.headers["content-type"], "application/json; charset=utf-8")
        self.assertNotIn("content-length", answer.headers)
        self.assertEqual(answer.body, whole.body)
        self.assertEqual(len(answer.json()["items"]), 40)

    async def test_list_odd_links(self) -> None:
        """FIX 21, 31: loops and broken links break no listing, and no host path is told."""
        (self.folder / "loop").symlink_to("loop")
        (self.folder / "broken").symlink_to("nowhere")
        (self.folder / "out").symlink_to("/etc")
        (self.folder / "absolute").symlink_to(self.folder / "file")
        answer = await self.rpc("POST", "/folder/file/list", relpath=".")
        self.assertEqual(answer.status, 200)
        targets = {item["name"]: item["symlink_target"] for item in answer.json()["items"]}
        self.assertEqual(targets["out"], "")
        self.assertEqual(targets["absolute"], "file")
        self.assertNotIn(str(self.folder).encode(), answer.body)

    async def test_list_odd_names(self) -> None:
        """A name that is no UTF-8 is in the listing as well."""
        (self.folder / os.fsdecode(b"a\xff")).touch()
        answer = await self.rpc("POST", "/folder/file/list", relpath=".")
        names = {os.fsencode(item["name"]) for item in answer.json()["items"]}
        self.assertIn(b"a\xff", names)

    async def test_list_special_files(self) -> None:
        """A FIFO or a socket hangs no listing."""
        os.mkfifo(self.folder / "fifo")
        answer = await self.rpc("POST", "/folder/file/list", relpath=".")
        self.assertEqual(len(answer.json()["items"]), 3)

    async def test_filesystem_errors(self) -> None:
        """What the file system refuses is a 400 with its number and the paths."""
        answer = await self.rpc("POST", "/folder/file/list", relpath="missing")
        problem = self.assert_problem(answer, 400, "filesystem-error")
        self.assertEqual(problem["errno"], 2)
        self.assertEqual(problem["paths"], ["missing"])
        self.assertEqual(problem["msg"], "No such file or directory")
        answer = await self.rpc("POST", "/folder/file/list", relpath="file")
        self.assertEqual(self.assert_problem(answer, 400, "filesystem-error")["errno"], 20)

    async def test_outside(self) -> None:
        """FIX 22: a path that leads out of the vfolder is a 400 for every route."""
        (self.folder / "out").symlink_to("/")
        for path, params in (
            ("list", {"relpath": ".."}),
            ("list", {"relpath": "out/etc"}),
            ("mkdir", {"relpath": "../x"}),
            ("mkdir", {"relpath": "out/x"}),
            ("fetch", {"relpath": "out/etc/passwd"}),
            ("fetch", {"relpath": "../../x"}),
            ("rename", {"relpath": "../x", "new_name": "y"}),
            ("move", {"src_relpath": "file", "dst_relpath": "../x"}),
            ("move", {"src_relpath": "out/etc/passwd", "dst_relpath": "x"}),
            ("move", {"src_relpath": "file", "dst_relpath": "out/tmp/x"}),
            ("delete", {"relpaths": ["../x"]}),
            ("delete", {"relpaths": ["out/tmp/x"]}),
            ("upload", {"relpath": "../x", "size": 1}),
            ("upload", {"relpath": "out/tmp/x", "size": 1}),
        ):
            answer = await self.rpc("POST", f"/folder/file/{path}", **params)
            if path == "mkdir":
                self.assertEqual(answer.status, 422)
            else:
                self.assert_problem(answer, 400, "subpath/invalid")

    async def test_mkdir(self) -> None:
        """A directory is made with its parents, and the answer says so for every era."""
        answer = await self.rpc("POST", "/folder/file/mkdir", relpath="a/b/c")
        self.assertEqual(answer.status, 200)
        self.assertEqual(
            answer.json(),
            {"results": {"success": [{"msg": None, "item": "a/b/c"}], "failed": []}},
        )
        self.assertTrue((self.folder / "a" / "b" / "c").is_dir())

    async def test_mkdir_many(self) -> None:
        """Some of several directories may fail, and each is told of."""
        answer = await self.rpc("POST", "/folder/file/mkdir", relpath=["a", "dir", "b"])
        self.assertEqual(answer.status, 207)
        results = answer.json()["results"]
        self.assertEqual([item["item"] for item in results["success"]], ["a", "b"])
        self.assertEqual([item["item"] for item in results["failed"]], ["dir"])
        self.assertIn("msg", answer.json())

    async def test_mkdir_failures(self) -> None:
        """When all of them fail it is a 422, with a message for every era."""
        for params in (
            {"relpath": "dir"},
            {"relpath": "x/y", "parents": False},
            {"relpath": "file", "exist_ok": True},
            {"relpath": "file/below"},
        ):
            answer = await self.rpc("POST", "/folder/file/mkdir", **params)
            self.assertEqual((answer.status, params), (422, params))
            self.assertIsInstance(answer.json()["msg"], str)
            self.assertIn("error_code", answer.json())
            self.assertEqual(len(answer.json()["results"]["failed"]), 1)

    async def test_mkdir_exist_ok(self) -> None:
        """A directory that is there is fine when that is said, in any spelling of true."""
        for flag in (True, "yes", 1, "ON"):
            answer = await self.rpc("POST", "/folder/file/mkdir", relpath="dir", exist_ok=flag)
            self.assertEqual(answer.status, 200)

    async def test_mkdir_count(self) -> None:
        """From one to fifty directories can be made at a time."""
        for count, status in ((0, 400), (50, 200), (51, 400)):
            paths = [f"{count}/{number}" for number in range(count)]
            answer = await self.rpc("POST", "/folder/file/mkdir", relpath=paths)
            self.assertEqual(answer.status, status)

    async def test_rename(self) -> None:
        """A file or directory gets another name, with or without is_dir."""
        rename = "/folder/file/rename"
        answer = await self.rpc("POST", rename, relpath="file", new_name="new")
        self.assertEqual((answer.status, answer.body), (204, b""))
        answer = await self.rpc("POST", rename, relpath="dir", new_name="d", is_dir=True)
        self.assertEqual(answer.status, 204)
        self.assertEqual({path.name for path in self.folder.iterdir()}, {"new", "d"})

    async def test_rename_errors(self) -> None:
        """A new name is a single name, and the old one has to be there."""
        rename = "/folder/file/rename"
        for name in ("a/b", "..", ".", "", "/x"):
            answer = await self.rpc("POST", rename, relpath="file", new_name=name)
            self.assert_problem(answer, 400, "invalid-api-params")
        answer = await self.rpc("POST", rename, relpath="missing", new_name="x")
        self.assert_problem(answer, 400, "filesystem-error")

    async def test_onto_a_directory(self) -> None:
        """FIX 18: nothing is moved into or over a directory unasked."""
        answer = await self.rpc("POST", "/folder/file/rename", relpath="file", new_name="dir")
        self.assert_problem(answer, 409, "target-conflict")
        params = {"src_relpath": "file", "dst_relpath": "dir"}
        answer = await self.rpc("POST", "/folder/file/move", **params)
        self.assert_problem(answer, 409, "target-conflict")
        self.assertEqual(list((self.folder / "dir").iterdir()), [])

    async def test_move(self) -> None:
        """A file or directory is moved, and replaces a file."""
        (self.folder / "dir" / "old").write_bytes(b"old")
        params = {"src_relpath": "file", "dst_relpath": "dir/old"}
        answer = await self.rpc("POST", "/folder/file/move", **params)
        self.assertEqual(answer.status, 204)
        self.assertEqual((self.folder / "dir" / "old").read_bytes(), b"content")
        params = {"src_relpath": "dir", "dst_relpath": "dir/into/itself"}
        answer = await self.rpc("POST", "/folder/file/move", **params)
        self.assert_problem(answer, 400, "filesystem-error")

    async def test_fetch(self) -> None:
        """A file is fetched as it is."""
        answer = await self.rpc("POST", "/folder/file/fetch", relpath="file")
        self.assertEqual((answer.status, answer.body), (200, b"content"))
        self.assertEqual(answer.headers["content-type"], "application/octet-stream")
        (self.folder / "empty").touch()
        answer = await self.rpc("POST", "/folder/file/fetch", relpath="empty")
        self.assertEqual((answer.status, answer.body), (200, b""))

    async def test_fetch_errors(self) -> None:
        """FIX 19: what cannot be fetched is an error, and no empty 200."""
        answer = await self.rpc("POST", "/folder/file/fetch", relpath="missing")
        self.assert_problem(answer, 404, "file-not-found")
        answer = await self.rpc("POST", "/folder/file/fetch", relpath="file/below")
        self.assert_problem(answer, 404, "file-not-found")
        answer = await self.rpc("POST", "/folder/file/fetch", relpath="dir")
        self.assert_problem(answer, 400, "not-a-regular-file")
        os.mkfifo(self.folder / "fifo")
        answer = await self.rpc("POST", "/folder/file/fetch", relpath="fifo")
        self.assert_problem(answer, 400, "not-a-regular-file")

    async def test_delete(self) -> None:
        """Files are deleted, and directories when that is said."""
        (self.folder / "dir" / "x").touch()
        delete = "/folder/file/delete"
        answer = await self.rpc("POST", delete, relpaths=["file"])
        self.assertEqual((answer.status, answer.json()), (200, {"status": "ok"}))
        answer = await self.rpc("POST", delete, relpaths=["dir"])
        self.assertEqual(self.assert_problem(answer, 400, "filesystem-error")["errno"], 21)
        answer = await self.rpc("POST", delete, relpaths=["dir"], recursive=True)
        self.assertEqual(answer.status, 200)
        self.assertEqual(list(self.folder.iterdir()), [])

    async def test_delete_nothing(self) -> None:
        """FIX 31: deleting nothing is a success."""
        answer = await self.rpc("POST", "/folder/file/delete", relpaths=[])
        self.assertEqual((answer.status, answer.json()), (200, {"status": "ok"}))

    async def test_delete_goes_on(self) -> None:
        """Files after one that fails are deleted all the same, and the one is named."""
        answer = await self.rpc("POST", "/folder/file/delete", relpaths=["missing", "file"])
        problem = self.assert_problem(answer, 400, "filesystem-error")
        self.assertEqual(problem["paths"], ["missing"])
        self.assertFalse((self.folder / "file").exists())

    async def test_delete_links(self) -> None:
        """FIX 17: a link is deleted itself, broken and outward ones too, and no target."""
        outside = self.proxy.root / "outside"
        outside.mkdir()
        (outside / "x").touch()
        (self.folder / "a").symlink_to("file")
        (self.folder / "b").symlink_to("nowhere")
        (self.folder / "c").symlink_to(outside.resolve())
        answer = await self.rpc(
            "POST", "/folder/file/delete", relpaths=["a", "b", "c"], recursive=True
        )
        self.assertEqual(answer.status, 200)
        self.assertEqual({path.name for path in self.folder.iterdir()}, {"dir", "file"})
        self.assertTrue((outside / "x").exists())

    async def test_delete_the_root(self) -> None:
        """FIX 18: the vfolder itself is not deleted by its files' route."""
        for path in (".", "", "dir/..", "./"):
            answer = await self.rpc(
                "POST", "/folder/file/delete", relpaths=["file", path], recursive=True
            )
            self.assert_problem(answer, 400, "subpath/invalid")
        self.assertEqual({path.name for path in self.folder.iterdir()}, {"dir", "file"})

    async def test_download_token(self) -> None:
        """A token for a download is made without a look at the file."""
        for relpath in ("file", "missing", "../x"):
            answer = await self.rpc("POST", "/folder/file/download", relpath=relpath, archive=True)
            self.assertEqual(set(answer.json()), {"token"})
            token = self.proxy.key.verify(NOW, answer.json()["token"], DownloadToken)
            self.assertEqual(token.relpath, relpath)
            self.assertEqual(str(token.vfid), self.vfid)
            self.assertEqual(token.exp, NOW + LIFETIME)

    async def test_upload_token(self) -> None:
        """A token for an upload comes with a session, whose staging file is there."""
        for size in (10, "10"):
            answer = await self.rpc("POST", "/folder/file/upload", relpath="new", size=size)
            self.assertEqual(set(answer.json()), {"token"})
            token = self.proxy.key.verify(NOW, answer.json()["token"], UploadToken)
            self.assertEqual((token.size, token.relpath), (10, "new"))
            self.assertRegex(token.session, "^[0-9a-f]{32}$")
            staged = self.folder / ".upload" / token.session
            self.assertEqual(staged.read_bytes(), b"")

    async def test_upload_sizes(self) -> None:
        """FIX 3: a size that is negative, none or too large gets no session."""
        upload = "/folder/file/upload"
        for size in (-1, "x", None, 1.5, True):
            answer = await self.rpc("POST", upload, relpath="new", size=size)
            problem = self.assert_problem(answer, 400, "invalid-api-params")
            self.assertEqual(set(problem["data"]), {"size"})
        answer = await self.rpc("POST", upload, relpath="new", size=MAX_UPLOAD + 1)
        self.assert_problem(answer, 413, "upload-too-large")
        self.assertFalse((self.folder / ".upload").exists())

    async def test_upload_onto_a_directory(self) -> None:
        """No session is made for a file that would be a directory."""
        answer = await self.rpc("POST", "/folder/file/upload", relpath="dir", size=1)
        self.assert_problem(answer, 409, "target-conflict")

    async def test_upload_through_a_link(self) -> None:
        """FIX 1: no session is made for a target outside, through links or dots."""
        (self.folder / "out").symlink_to(self.proxy.root.resolve())
        for relpath in ("out/x", "../../../x", "dir/../../x"):
            answer = await self.rpc("POST", "/folder/file/upload", relpath=relpath, size=1)
            self.assert_problem(answer, 400, "subpath/invalid")


for _mixin in (Status, VolumeRoutes, Parameters, Folders, Clones, MetadataRoutes, Files):
    globals().update(on_all_transports(_mixin))
    # What has no transport is no test case.
    del globals()[_mixin.__name__]
del _mixin


class ManagerCase(MemoryCase):
    def ask(self, method: str, path: str, **params: Any) -> Wire:
        """A call about the vfolder of the test, on a connection of its own."""
        wire = self.proxy.connect(self.proxy.manager_site)
        body = json.dumps({"volume": "local", "vfid": self.vfid, **params}).encode()
        wire.request(method, path, {AUTH: MANAGER_SECRET}, body)
        return wire

    def get(self, path: str) -> Answer:
        wire = self.proxy.connect(self.proxy.manager_site)
        wire.request("GET", path, {AUTH: MANAGER_SECRET})
        return wire.answers()[0]


class DeletionTests(ManagerCase):
    def test_does_not_wait_for_the_contents(self) -> None:
        """A deletion is answered when the vfolder is gone; its contents may take hours."""
        self.put("dir/file", b"x")
        self.threads.held = True
        wire = self.ask("POST", "/folder/delete")
        self.threads.step()
        self.assertEqual(wire.answers()[0].status, 204)
        self.assertFalse(self.folder.exists())
        self.clock.advance(MOMENT)
        self.assertTrue(self.threads.calls)

    def test_later_managers(self) -> None:
        """Managers of 25.12 are told 410, and those between 202 with a task, when it is so set."""
        for status in (410, 202):
            self.proxy.restart(delete_status=status)
            self.vfid = self.proxy.make_folder()
            [answer] = self.ask("POST", "/folder/delete").answers()
            self.assertEqual(answer.status, status)
            self.assertFalse(self.proxy.folder(self.vfid).exists())
            if status == 202:
                UUID(answer.json()["bgtask_id"])
            else:
                self.assertIn("msg", answer.json())
                self.assertEqual(answer.json()["error_code"], "vfolder_delete_gone")


class CancellationTests(ManagerCase):
    def test_clone_goes_on(self) -> None:
        """A clone whose manager hangs up is made all the same."""
        self.put("file", b"content")
        target = str(uuid4())
        self.threads.held = True
        wire = self.ask(
            "POST", "/folder/clone", src_volume="local", src_vfid=self.vfid, dst_vfid=target
        )
        self.threads.step()
        wire.disconnect()
        self.threads.release()
        self.assertEqual((self.proxy.folder(target) / "file").read_bytes(), b"content")

    def test_fetch_is_given_up(self) -> None:
        """A manager that hangs up at any point of a fetch leaves no file open."""
        self.put("file", bytes(2 * BLOCK))
        for steps in range(4):
            before = Descriptors()
            self.threads.held = True
            wire = self.ask("POST", "/folder/file/fetch", relpath="file")
            for _ in range(steps):
                self.threads.step()
            wire.disconnect()
            self.threads.release()
            self.assertEqual(before.left(self.root), set())
            self.assertEqual(self.proxy.manager_site.active, set())

    def test_fetch_back_pressure(self) -> None:
        """FIX 20: a manager that reads slowly does not fill the memory."""
        self.put("file", bytes(8 * BLOCK))
        self.threads.held = True
        wire = self.ask("POST", "/folder/file/fetch", relpath="file")
        self.threads.step()
        assert wire.producer is not None
        wire.producer.pauseProducing()
        self.threads.step()
        self.assertEqual(self.threads.calls, [])
        self.assertLess(len(wire.value()), 2 * BLOCK)

    def long_listing(self) -> Wire:
        """Ask for a listing that takes many calls; none of them is made yet."""
        self.patch(files, "PIECE", 1)
        self.patch(producers, "BLOCK", 1)
        self.proxy.manager._scandir_limit = 0
        for number in range(20):
            self.put(f"dir/{number}", b"")
        self.threads.held = True
        return self.ask("POST", "/folder/file/list", relpath="dir")

    def test_list_is_given_up(self) -> None:
        """A manager that hangs up at any point of a long listing leaves nothing open."""
        for steps in range(4):
            before = Descriptors()
            wire = self.long_listing()
            for _ in range(steps):
                self.threads.step()
            wire.disconnect()
            self.threads.release()
            self.assertEqual(before.left(self.root), set())
            self.assertEqual(self.proxy.manager_site.active, set())

    def test_list_back_pressure(self) -> None:
        """A manager that reads slowly does not fill the memory with a long listing."""
        wire = self.long_listing()
        self.threads.step()
        assert wire.producer is not None
        wire.producer.pauseProducing()
        self.threads.step()
        self.assertEqual(self.threads.calls, [])
        so_far = len(wire.value())
        wire.producer.resumeProducing()
        self.threads.release()
        [answer] = wire.answers()
        self.assertEqual(len(answer.json()["items"]), 20)
        self.assertGreater(len(answer.body), 3 * so_far)

    def test_list_breaks(self) -> None:
        """A volume that fails before a listing has begun is a problem; later, it ends abruptly."""
        for steps in range(3):
            before = Descriptors()
            wire = self.long_listing()
            for _ in range(steps):
                self.threads.step()
            self.threads.fail(OSError(5, "Input/output error"))
            self.threads.release()
            if steps:
                self.assertTrue(wire.aborted)
                self.assertFalse(wire.value().endswith(b"0\r\n\r\n"))
            else:
                self.assertEqual(wire.answers()[0].json()["error_code"], BackendFailure.error_code)
            self.assertEqual(before.left(self.root), set())

    def test_list_without_chunks(self) -> None:
        """A client of HTTP/1.0 is sent a long listing until the end of the connection."""
        wire = self.long_listing()
        wire.disconnect()
        self.threads.release()
        wire = self.proxy.connect(self.proxy.manager_site)
        body = json.dumps({"volume": "local", "vfid": self.vfid, "relpath": "dir"})
        wire.send(
            f"POST /folder/file/list HTTP/1.0\r\n{AUTH}: {MANAGER_SECRET}\r\n"
            f"Content-Length: {len(body)}\r\n\r\n{body}".encode()
        )
        self.clock.advance(0)
        self.assertTrue(wire.closed)
        [answer] = wire.answers()
        self.assertNotIn("transfer-encoding", answer.headers)
        self.assertEqual(len(answer.json()["items"]), 20)

    def test_all_routes(self) -> None:
        """A manager may hang up on any call, and nothing is left open."""
        self.put("file", b"x")
        before = Descriptors()
        for method, path, params in (
            ("GET", "/folder/usage", {}),
            ("GET", "/folder/mount", {}),
            ("POST", "/folder/file/list", {"relpath": "."}),
            ("POST", "/folder/file/upload", {"relpath": "x", "size": 3}),
            ("POST", "/folder/file/mkdir", {"relpath": "d"}),
            ("GET", "/folder/fs-usage", {}),
        ):
            self.threads.held = True
            self.ask(method, path, **params).disconnect()
            self.threads.release()
        self.assertEqual(before.left(self.root), set())
        self.assertEqual(self.proxy.manager_site.active, set())


class SickVolumeTests(ManagerCase):
    def test_deadline(self) -> None:
        """A call that misses its deadline is a 503 that says when to try again."""
        for method, path, params in (
            ("POST", "/folder/create", {"vfid": str(uuid4())}),
            ("GET", "/folder/usage", {}),
            ("GET", "/folder/mount", {}),
            ("GET", "/folder/fs-usage", {}),
            ("POST", "/folder/file/list", {"relpath": "."}),
            ("POST", "/folder/file/fetch", {"relpath": "x"}),
            ("POST", "/folder/file/upload", {"relpath": "x", "size": 3}),
            ("POST", "/folder/file/delete", {"relpaths": ["x"]}),
        ):
            self.threads.held = True
            wire = self.ask(method, path, **params)
            self.assertEqual(wire.value(), b"")
            self.clock.advance(self.threads.deadline)
            [answer] = wire.answers()
            self.assertEqual((answer.status, path), (503, path))
            self.assertGreater(int(answer.headers["retry-after"]), 0)
            self.assertEqual(answer.json()["error_code"], "volume_access_unavailable")

    def test_other_volume(self) -> None:
        """A volume that hangs is nothing to the other one."""
        self.threads.held = True
        hanging = self.ask("GET", "/folder/usage")
        vfid = self.proxy.make_folder("other")
        [answer] = self.ask("GET", "/folder/usage", volume="other", vfid=vfid).answers()
        self.assertEqual(answer.status, 200)
        self.assertEqual(hanging.value(), b"")

    def test_health_touches_no_volume(self) -> None:
        """FIX 24: health and the list of volumes answer while every volume hangs."""
        for threads in self.proxy.threads.values():
            threads.held = True
        for path in ("/", "/volumes", "/status", "/livez", "/readyz", "/health"):
            self.assertEqual(self.get(path).status, 200)
        for path in ("/volume/hwinfo", "/folder/file/download"):
            method = "GET" if path == "/volume/hwinfo" else "POST"
            [answer] = self.ask(method, path, relpath="x").answers()
            self.assertEqual(answer.status, 200)
        wire = self.proxy.connect()
        wire.request("GET", "/")
        wire.request("OPTIONS", "/upload")
        self.assertEqual([answer.status for answer in wire.answers()], [200, 200])
        self.assertEqual([t.calls for t in self.proxy.threads.values()], [[], []])

    def test_volumes_gone(self) -> None:
        """FIX 24: the list of volumes is there also when their mounts are not."""
        for volume in self.proxy.volume.values():
            Path(volume.path).rename(volume.path + "-gone")
        self.assertEqual(len(self.get("/volumes").json()["volumes"]), 2)

    def test_backends_are_made_once(self) -> None:
        """FIX 25: no request makes a volume anew."""
        made: list[object] = []
        self.patch(VFSBackend, "volume", lambda *args: made.append(args))
        self.patch(config, "backends", lambda: made.append("looked for"))
        self.ask("GET", "/folder/usage")
        self.get("/volumes")
        self.assertEqual(made, [])

    def test_disk_errors(self) -> None:
        """What a sick disk says is told by its kind."""
        for number, status in ((28, 507), (122, 413), (5, 500), (30, 500), (116, 503), (13, 400)):

            def broken(*_: object, number: int = number) -> Directory:
                raise OSError(number, os.strerror(number))

            self.patch(VFSVolume, "open_root", broken)
            [answer] = self.ask("GET", "/folder/usage").answers()
            self.assertEqual((answer.status, number), (status, number))
            self.assertIn("msg", answer.json())


class _DeadMount(Clock):
    """A clock that real threads can call into; what they say waits for the test."""

    def __init__(self) -> None:
        super().__init__()
        self.said: list[Any] = []

    def callFromThread(self, function: Any, *args: Any, **kwargs: Any) -> None:
        self.said.append((function, args, kwargs))


class DeadMountTests(SynchronousTestCase):
    def test_real_threads_that_hang(self) -> None:
        """FIX 24: with all real threads of all volumes stuck, health and volumes answer at once."""
        root = Path(self.mktemp())
        root.mkdir(parents=True)
        proxy = MemoryProxy(root)
        clock = _DeadMount()
        free = threading.Event()
        self.addCleanup(free.set)

        class Hanging(VFSVolume):
            def open_root(self) -> Directory:
                free.wait()
                return super().open_root()

        for name, volume in list(proxy.volume.items()):
            threads = VolumeThreads(clock, name, size=2)
            self.addCleanup(threads.stop)
            proxy.volume[name] = Hanging(name, volume.path, ".", threads)
        proxy.volumes = Volumes(proxy.volume)
        proxy.reactor = clock
        proxy.restart()

        def ask(path: str, params: Any = None) -> Wire:
            wire = proxy.connect(proxy.manager_site)
            body = None if params is None else json.dumps(params).encode()
            wire.request("GET", path, {AUTH: MANAGER_SECRET}, body)
            return wire

        vfid = str(uuid4())
        stuck = [
            ask("/folder/usage", {"volume": volume, "vfid": vfid})
            for volume in ("local", "other") * 8
        ]
        for path in ("/", "/volumes", "/status", "/livez", "/readyz", "/health"):
            self.assertEqual(ask(path).answers()[0].status, 200)
        self.assertEqual([wire.value() for wire in stuck], [b""] * 16)
        clock.advance(15)
        for wire in stuck:
            self.assertEqual(wire.answers()[0].status, 503)


class SecretTests(SynchronousTestCase):
    def test_compared_in_constant_time(self) -> None:
        """FIX 26: how long a wrong secret is looked at says nothing about the right one."""
        import hmac

        root = Path(self.mktemp())
        root.mkdir(parents=True)
        proxy = MemoryProxy(root)
        compared: list[tuple[bytes, bytes]] = []

        def compare(one: bytes, other: bytes) -> bool:
            compared.append((one, other))
            return one == other

        self.patch(hmac, "compare_digest", compare)
        wire = proxy.connect(proxy.manager_site)
        wire.request("GET", "/volumes", {AUTH: "wrong"})
        self.assertEqual(wire.answers()[0].status, 403)
        self.assertEqual(len(compared), 1)


class ModuleTests(SynchronousTestCase):
    def test_every_route_is_known(self) -> None:
        """There are no routes but those of the contract."""
        found = {
            f"{sorted((rule.methods or set()) - {'HEAD'})[0]} {rule.rule}"
            for rule in ManagerAPI.app.url_map.iter_rules()
        }
        folder = "create delete clone mount usage used-bytes fs-usage metadata"
        self.assertLessEqual({f"/folder/{name}" for name in folder.split()}, _paths(found))
        files = "mkdir list rename move fetch download upload delete"
        self.assertLessEqual({f"/folder/file/{name}" for name in files.split()}, _paths(found))
        self.assertIn("PATCH /volume/quota", found)
        self.assertIn("POST /folder/metadata", found)

    def test_settings_are_frozen(self) -> None:
        """What a token is signed with cannot be changed by a request."""
        root = Path(self.mktemp())
        root.mkdir(parents=True)
        key = MemoryProxy(root).key
        self.assertNotEqual(evolve(key, secret="x" * 32), key)
        self.assertNotIn(key.secret, repr(key))


def _paths(rules: set[str]) -> set[str]:
    return {rule.partition(" ")[2] for rule in rules}

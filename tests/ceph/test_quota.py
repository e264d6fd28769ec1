"""
Limits, as the real daemon sets them, and as they hold on two mounts of one CephFS.
"""

from __future__ import annotations

import atexit
import errno
import functools
import os
import shutil
import tempfile
import threading
import time
from pathlib import Path
from typing import Any
from uuid import uuid4

from twisted.trial.unittest import SynchronousTestCase

from backends.cephfs.attributes import BYTES, MAX_BYTES, Attributes
from storageproxy.testing import GIVE_UP
from tests.ceph import counting
from tests.ceph_attributes import AttributesConformance
from tests.functional.daemon import Daemon, select_pause
from tests.functional.http11 import Answer, OnFolder, dialects
from tests.functional.test_wire_upload import OnUpload

MEBI = 1 << 20
#: What clients may write before they know of each other.
SLACK = 16 * MEBI


class AttributesTests(AttributesConformance, SynchronousTestCase):
    """What is expected of CephFS holds of it."""

    def setUp(self) -> None:
        path = counting.cluster().mount("one") / uuid4().hex
        path.mkdir()
        self.addCleanup(shutil.rmtree, path)
        self.path = str(path)
        self.attributes = Attributes()

    def eventually(self, descriptor: int, name: str, value: int) -> None:
        """It is a little late."""
        for _ in range(200):
            if self.attributes.get(descriptor, name) == value:
                break
            select_pause()
        super().eventually(descriptor, name, value)


@functools.cache
def daemon() -> Daemon:
    """The daemon of these tests, on the first mount; the second one is somebody else's."""
    cluster = counting.cluster()
    cluster.mount("two")
    place = cluster.mount("one") / "daemon"
    place.mkdir()
    root = Path(tempfile.mkdtemp(prefix="daemon-")).resolve()
    atexit.register(shutil.rmtree, root)
    options = {
        "client": "client.admin",
        "conf": str(cluster.configuration),
        "keyring": str(cluster.directory / "keyring"),
    }
    lines = [f'{name} = "{value}"' for name, value in options.items()]
    table = "\n".join(["[volume.local.options]", *lines])
    made = Daemon(root, ("local",), mounts=place, backend="cephfs", volume_settings=table)
    atexit.register(made.stop)
    made.start()
    return made


class OnVolume(OnFolder):
    """A vfolder on CephFS, without a limit at first."""

    def provide(self) -> Daemon:
        """The daemon."""
        return daemon()

    def create(self, quota: Any = None) -> tuple[str, Path]:
        """Make a vfolder with a limit: its id, and where it lies."""
        vfid = self.new_id()
        self.done(self.post("/folder/create", vfid=vfid, options={"quota": quota}))
        return vfid, self.path(vfid)

    def limit(self, size: Any, vfid: str | None = None) -> None:
        """Limit a vfolder, that of the test unless another is named."""
        self.done(self.ask("PATCH", "/volume/quota", vfid=vfid or self.vfid, size_bytes=size))

    def limit_of(self, vfid: str) -> Any:
        """The limit that the manager is told."""
        answer = self.ask("GET", "/volume/quota", vfid=vfid)
        self.assertEqual(answer.status, 200, answer.body)
        return answer.json()

    def full(self, answer: Answer) -> None:
        """Check that something was refused because of the limit."""
        self.assert_problem(answer, 413, "quota-exceeded")

    def on_two(self, path: Path) -> Path:
        """The same file or directory on the other mount."""
        one, two = (counting.cluster().mount(name) for name in ("one", "two"))
        return two / path.relative_to(one)

    def counted(self, root: Path) -> None:
        """Return when the cluster has counted a directory."""
        self.eventually(lambda: counting.is_counted(str(root)))


class Setting(OnVolume):
    """Limits that are set, told and lifted."""

    def test_create(self) -> None:
        """A folder is made with its limit, which all mounts know."""
        vfid, root = self.create("10m")
        self.assertEqual(counting.attribute(root, MAX_BYTES), 10 * MEBI)
        self.assertEqual(counting.attribute(self.on_two(root), MAX_BYTES), 10 * MEBI)
        self.assertEqual(self.limit_of(vfid), 10 * MEBI)

    def test_told(self) -> None:
        """The limit that is told is the one that holds, to the byte, whoever has set it."""
        self.assertEqual(self.limit_of(self.vfid), 0)
        self.limit(5 * MEBI + 1)
        self.assertEqual(self.limit_of(self.vfid), 5 * MEBI + 1)
        os.setxattr(self.on_two(self.root), MAX_BYTES, b"777")
        self.eventually(lambda: self.limit_of(self.vfid) == 777)

    def test_lifted(self) -> None:
        """A limit of 0 is none; one of files that somebody has set stays."""
        os.setxattr(self.root, "ceph.quota.max_files", b"1000")
        self.limit(MEBI)
        self.limit(0)
        self.assertEqual(self.limit_of(self.vfid), 0)
        self.assertEqual(counting.attribute(self.root, "ceph.quota.max_files"), 1000)
        (self.root / "file").write_bytes(bytes(2 * MEBI))

    def test_state(self) -> None:
        """The volume says what it can do, and how its cluster is."""
        volume, *_ = self.manager("GET", "/volumes").json()["volumes"]
        self.assertEqual(volume["backend"], "cephfs")
        self.assertEqual(volume["capabilities"], ["vfolder", "quota", "metric"])
        info = self.ask("GET", "/volume/hwinfo").json()
        self.assertIn(info["status"], ("healthy", "degraded"), info)
        self.assertEqual(info["metadata"]["metadata_servers"], "a: active")
        metric = self.ask("GET", "/volume/performance-metric").json()["metric"]
        self.assertEqual(len(metric), 6)
        self.assertTrue(all(value >= 0 for value in metric.values()), metric)

    def test_usage(self) -> None:
        """Usage is what the cluster has counted, the same on both mounts."""
        (self.root / "a").mkdir()
        (self.on_two(self.root) / "a" / "file").write_bytes(bytes(3 * MEBI))
        self.eventually(
            lambda: (
                self.ask("GET", "/folder/usage").json() == {"file_count": 1, "used_bytes": 3 * MEBI}
            )
        )
        self.assertEqual(self.ask("GET", "/folder/used-bytes").json(), {"used_bytes": 3 * MEBI})

    def test_fs_usage(self) -> None:
        """The size of the volume is that of the file system, whatever the limits."""
        self.limit(MEBI)
        usage = self.ask("GET", "/folder/fs-usage").json()
        self.assertGreater(usage["capacity_bytes"], 100 * MEBI)
        self.assertLess(usage["used_bytes"], usage["capacity_bytes"])


class Uploading(OnVolume, OnUpload):
    """An upload into a folder that others fill meanwhile."""

    size = 32 * MEBI

    def setUp(self) -> None:
        """Nobody has written anything."""
        super().setUp()
        self.told: dict[str, int] = {}

    def test_two_writers(self) -> None:
        """
        It ends at the limit, with session and offset kept, and goes on when the limit is raised.
        """
        limit = 24 * MEBI
        self.limit(limit)
        found: list[int | None] = []

        def write() -> None:
            try:
                with open(self.on_two(self.root) / "other", "wb") as file:
                    for _ in range(64):
                        file.write(bytes(MEBI))
                        file.flush()
                        os.fsync(file.fileno())
                        self.known("other", file.tell())
            except OSError as error:
                found.append(error.errno)

        writer = threading.Thread(target=write)
        writer.start()
        self.full(self.append_known(self.data))
        writer.join()
        self.assertEqual(found, [errno.EDQUOT])
        self.counted(self.root)
        used = counting.attribute(self.root, BYTES)
        self.assertTrue(limit - SLACK <= used <= limit + SLACK, used)
        offset = self.offset()
        self.assertEqual(self.staging.read_bytes(), self.data[:offset])
        self.full(self.append_known(self.data, offset))
        self.limit(200 * MEBI)
        offset = self.offset()
        self.stored(self.append(offset, self.data[offset:]), self.size)
        self.complete()
        self.assertTrue((self.on_two(self.root) / "file").read_bytes() == self.data)

    def known(self, who: str, size: int) -> None:
        """
        Return when both mounts know of so many bytes of a writer, and of what others have told here
        by then: each mount refuses only what it knows of.
        """
        self.told[who] = size
        expected = sum(self.told.values())
        deadline = time.monotonic() + GIVE_UP
        for path in (self.root, self.on_two(self.root)):
            while counting.attribute(path, BYTES) < expected:
                self.assertLess(time.monotonic(), deadline, f"{path} knows of less than {expected}")
                select_pause()

    def append_known(self, data: bytes, start: int = 0) -> Answer:
        """Append piece by piece, each when that before is known: the first refusal, or the end."""
        for offset in range(start, len(data), MEBI):
            answer = self.append(offset, data[offset : offset + MEBI])
            if answer.status != 204:
                break
            self.known("upload", min(offset + MEBI, len(data)))
        return answer

    def offset(self) -> int:
        """The offset that a client is told."""
        answer = self.head()
        self.assertEqual(answer.status, 200)
        return int(answer.header("Upload-Offset") or -1)

    def test_neighbour(self) -> None:
        """A folder that is full does not keep others from anything."""
        self.limit(MEBI)
        self.full(self.append_known(self.data))
        self.vfid, self.root = self.create(64 * MEBI)
        self.target = self.session(self.relpath, self.size)
        self.file = self.root / self.relpath
        self.stored(self.append(0, self.data), self.size)
        self.complete()

    def test_limit_inside(self) -> None:
        """A file cannot be put into a directory that its owner has limited, which is told."""
        (self.root / "sub").mkdir()
        os.setxattr(self.root / "sub", MAX_BYTES, str(100 * MEBI).encode())
        target = self.session("sub/file", 5)
        content = self.assert_problem(self.append(0, b"12345", target), 400, "filesystem-error")
        self.assertIn("a limit of its own", content["msg"])
        answer = self.client("DELETE", target, {"Tus-Resumable": "1.0.0"})
        self.assertEqual(answer.status, 204)
        answer = self.client("DELETE", self.target, {"Tus-Resumable": "1.0.0"})
        self.assertEqual(list(self.root.iterdir()), [self.root / "sub"])


class Snapshots(OnVolume):
    """Requests for paths in snapshots."""

    def test_refused(self) -> None:
        """They are the client's mistake, and make and remove none."""
        (self.root / "file").write_text("here")
        (self.root / ".snap" / "one").mkdir()
        self.addCleanup((self.root / ".snap" / "one").rmdir)
        wrong = (400, "subpath/invalid")
        self.assert_problem(self.post("/folder/file/list", relpath=".snap"), *wrong)
        self.assert_problem(self.post("/folder/file/fetch", relpath=".snap/one/file"), *wrong)
        self.assert_problem(self.post("/folder/file/upload", relpath=".snap/a", size=1), *wrong)
        answer = self.post("/folder/file/mkdir", relpath=".snap/two")
        self.assertEqual(answer.status, 422)
        answer = self.post("/folder/file/delete", relpaths=[".snap/one"], recursive=True)
        self.assert_problem(answer, *wrong)
        answer = self.post("/folder/file/rename", relpath=".snap/one", new_name="two")
        self.assert_problem(answer, *wrong)
        token = self.post("/folder/file/download", relpath=".snap/one/file").json()["token"]
        self.assert_problem(self.client("GET", f"/download?token={token}"), 404)
        self.assertEqual(os.listdir(self.root / ".snap"), ["one"])


class Deleting(OnVolume):
    """Folders of limited scopes, and with snapshots."""

    def test_deleted(self) -> None:
        """They are gone at once, and their trash is soon."""
        vfid, root = self.create(8 * MEBI)
        (root / "sub").mkdir()
        (root / "sub" / "file").write_bytes(bytes(MEBI))
        (root / "sub" / ".snap" / "one").mkdir()
        # In the dialect without scopes that is a prefix, which nobody limits.
        scope = root.parents[2] if ":" in vfid else None
        if scope is not None:
            os.setxattr(scope, MAX_BYTES, str(100 * MEBI).encode())
        self.done(self.post("/folder/delete", vfid=vfid))
        self.assertFalse(root.exists())
        trash = self.daemon.volumes["local"] / ".storage-proxy" / "trash"
        self.eventually(lambda: not any(trash.iterdir()))
        if scope is not None:
            self.assertEqual(list(scope.iterdir()), [])


globals().update(dialects(Setting, Uploading, Snapshots, Deleting))

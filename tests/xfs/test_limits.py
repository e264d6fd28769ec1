"""
Limits, as the real daemon sets them by the real agent, and as they hold for real writes.
"""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import Any

from tests.functional.daemon import Daemon, unprivileged
from tests.functional.http11 import Answer, OnFolder, WireTestCase, dialects
from tests.functional.test_wire_upload import OnUpload
from tests.xfs import kernel, services

MEBI = 1 << 20
BLOCK = 4096


class OnVolume(OnFolder):
    """A vfolder on XFS, without a limit at first."""

    def provide(self) -> Daemon:
        """The unprivileged daemon."""
        return services.daemon()

    def create(self, quota: Any = None) -> tuple[str, Path]:
        """Make a vfolder with a limit: its id, and where it lies."""
        vfid = self.new_id()
        self.done(self.post("/folder/create", vfid=vfid, options={"quota": quota}))
        return vfid, self.path(vfid)

    def limit(self, size: int, vfid: str | None = None) -> None:
        """Limit a vfolder, that of the test unless another is named."""
        self.done(self.ask("PATCH", "/volume/quota", vfid=vfid or self.vfid, size_bytes=size))

    def limit_of(self, vfid: str) -> Any:
        """The limit that the manager is told."""
        answer = self.ask("GET", "/volume/quota", vfid=vfid)
        self.assertEqual(answer.status, 200, answer.body)
        return answer.json()

    def charge(self, root: Path | None = None) -> kernel.Charge:
        """What the kernel says of a vfolder."""
        return kernel.charges()[kernel.project(root or self.root).id]

    def full(self, answer: Answer) -> None:
        """Check that something was refused because of the limit."""
        self.assert_problem(answer, 413, "quota-exceeded")


class Setting(OnVolume):
    """Limits that are set, told and lifted."""

    def test_create(self) -> None:
        """A folder is made with its limit, and has a project of its own that nobody else has."""
        _, root = self.create(10 * MEBI)
        found = kernel.project(root)
        self.assertTrue(found.inherits)
        self.assertNotIn(found.id, (0, kernel.project(self.root).id))
        self.assertEqual(self.charge(root).limit, 10 * MEBI)
        self.assertEqual(os.stat(root).st_uid, services.USER)

    def test_create_closed(self) -> None:
        """So is one that is closed to the daemon itself; it can be deleted, and is released."""
        for mode in (0, 0o077, 0o777):
            vfid = self.new_id()
            params = {"vfid": vfid, "mode": mode, "options": {"quota": MEBI}}
            self.done(self.post("/folder/create", **params))
            root = self.path(vfid)
            self.assertEqual(root.stat().st_mode & 0o7777, mode)
            number = kernel.project(root).id
            self.assertEqual(self.charge(root).limit, MEBI)
            self.done(self.post("/folder/delete", vfid=vfid))
            self.eventually(lambda number=number: number not in services.agent().named())
        notes = services.volume("local") / ".storage-proxy" / "creating"
        self.assertEqual(list(notes.iterdir()), [])

    def test_create_without(self) -> None:
        """A folder without a limit has a project too: its usage is known."""
        self.assertNotEqual(kernel.project(self.root).id, 0)
        self.assertEqual(self.charge().limit, 0)
        self.assertEqual(self.limit_of(self.vfid), 0)

    def test_told(self) -> None:
        """The limit that is told is the kernel's, in whole blocks."""
        vfid, root = self.create("10m")
        self.assertEqual(self.limit_of(vfid), 10 * MEBI)
        self.limit(5 * MEBI + 1, vfid)
        self.assertEqual(self.limit_of(vfid), 5 * MEBI + BLOCK)
        kernel.set_limit(kernel.project(root).id, 7 * MEBI)
        self.assertEqual(self.limit_of(vfid), 7 * MEBI)

    def test_lifted(self) -> None:
        """A limit of 0 is none."""
        vfid, root = self.create(MEBI)
        self.limit(0, vfid)
        self.assertEqual(self.limit_of(vfid), 0)
        (root / "file").write_bytes(bytes(2 * MEBI))

    def test_below_usage(self) -> None:
        """A limit below what is there is set; what is there stays and cannot grow."""
        (self.root / "file").write_bytes(bytes(4 * MEBI))
        self.limit(MEBI)
        self.assertEqual(self.charge().limit, MEBI)
        self.full(self.post("/folder/file/upload", relpath="other", size=1))
        self.assertEqual((self.root / "file").stat().st_size, 4 * MEBI)

    def test_drifted(self) -> None:
        """A folder in another project has no limit to tell or to set, and it is said why."""
        self.limit(8 * MEBI)
        number = kernel.project(self.root).id
        (self.root / "file").write_bytes(bytes(MEBI))
        kernel.set_project(self.root, 7)
        try:
            for method, more in (("GET", {}), ("PATCH", {"size_bytes": MEBI})):
                answer = self.ask(method, "/volume/quota", **more)
                problem = self.assert_problem(answer, 409, "project/drifted")
                for word in (str(self.root), "7", str(number), "reconciling"):
                    self.assertIn(word, problem["msg"])
            self.assertEqual(self.ask("GET", "/folder/usage").json()["used_bytes"], MEBI)
            self.assertEqual(self.ask("GET", "/folder/used-bytes").json()["used_bytes"], MEBI)
        finally:
            kernel.set_project(self.root, number)
        self.assertEqual(self.limit_of(self.vfid), 8 * MEBI)

    def test_locked_by_others(self) -> None:
        """Nobody holds up changes of limits who can do no more than read the volume."""
        held = subprocess.Popen(
            [*unprivileged(65534), "flock", services.volume("local"), "sh", "-c", "echo; read _"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        assert held.stdin is not None and held.stdout is not None
        try:
            held.stdout.readline()
            self.limit(8 * MEBI)
        finally:
            held.stdin.close()
            held.stdout.close()
            held.wait(timeout=60)
        locks = list(services.agent().registry.glob("*.lock"))
        self.assertEqual(len(locks), 2, locks)
        for lock in locks:
            status = lock.stat()
            self.assertEqual((status.st_uid, status.st_mode & 0o777), (0, 0o600))

    def test_capabilities(self) -> None:
        """The volume says that it can."""
        volume, *_ = self.manager("GET", "/volumes").json()["volumes"]
        self.assertEqual((volume["name"], volume["backend"]), ("local", "xfs"))
        self.assertIn("quota", volume["capabilities"])


class Counting(OnVolume):
    """Usage, as the kernel keeps account of it."""

    def used(self) -> int:
        """Bytes, as the manager is told."""
        usage = self.ask("GET", "/folder/usage").json()
        used = self.ask("GET", "/folder/used-bytes").json()
        self.assertEqual(usage["used_bytes"], used["used_bytes"])
        return int(used["used_bytes"])

    def test_usage(self) -> None:
        """Bytes are those that are charged, with and without a limit."""
        for limit in (0, 64 * MEBI):
            self.limit(limit)
            before = self.used()
            with open(self.root / f"file-{limit}", "wb") as file:
                file.write(bytes(3 * MEBI))
                os.fsync(file.fileno())
            self.assertEqual(self.used() - before, 3 * MEBI)
            self.assertEqual(self.used(), self.charge().size)

    def test_fs_usage(self) -> None:
        """The size of the volume is that of the file system, whatever the limits."""
        self.limit(MEBI)
        usage = self.ask("GET", "/folder/fs-usage").json()
        about = os.statvfs(kernel.mount())
        self.assertEqual(usage["capacity_bytes"], about.f_frsize * about.f_blocks)


class Uploading(OnVolume, OnUpload):
    """An upload into a folder that is full before it has ended."""

    size = 6 * MEBI

    def test_beyond_limit(self) -> None:
        """
        It is refused, with session and offset kept: when the limit is raised it goes on from there.
        """
        self.limit(3 * MEBI)
        self.stored(self.append(0, self.data[:MEBI]), MEBI)
        self.full(self.append(MEBI, self.data[MEBI:]))
        answer = self.head()
        self.assertEqual(answer.status, 200)
        offset = int(answer.header("Upload-Offset") or -1)
        self.assertGreaterEqual(offset, MEBI)
        self.assertLessEqual(offset, 3 * MEBI)
        self.assertEqual(self.staging.read_bytes(), self.data[:offset])
        self.full(self.append(offset, self.data[offset:]))
        self.limit(16 * MEBI)
        self.stored(self.append(offset, self.data[offset:]), self.size)
        self.complete()

    def test_one_project(self) -> None:
        """The staging file is charged to the folder already, and the file after it."""
        number = kernel.project(self.root).id
        self.stored(self.append(0, self.data[:MEBI]), MEBI)
        self.assertEqual(kernel.project(self.staging).id, number)
        self.stored(self.append(MEBI, self.data[MEBI:]), self.size)
        self.complete()
        self.assertEqual(kernel.project(self.file).id, number)

    def test_into_full(self) -> None:
        """A session cannot even begin where nothing fits; it can when something was removed."""
        self.client("DELETE", self.target, {"Tus-Resumable": "1.0.0"})
        (self.root / "large").write_bytes(bytes(MEBI))
        self.limit(MEBI)
        self.full(self.post("/folder/file/upload", relpath="file", size=self.size))
        answer = self.post("/folder/file/mkdir", relpath="a")
        self.full(answer)
        self.assertEqual([one["item"] for one in answer.json()["results"]["failed"]], ["a"])
        (self.root / "large").unlink()
        self.assertEqual(self.post("/folder/file/mkdir", relpath="a").status, 200)

    def test_neighbour(self) -> None:
        """A folder that is full does not keep others from anything."""
        self.limit(MEBI)
        self.full(self.append(0, self.data))
        self.vfid, self.root = self.create(16 * MEBI)
        self.target = self.session(self.relpath, self.size)
        self.file = self.root / self.relpath
        self.stored(self.append(0, self.data), self.size)
        self.complete()


class Cloning(OnVolume):
    """Clones have projects of their own."""

    def clone(self, target: str) -> Answer:
        """Clone the folder of the test."""
        params = {"src_volume": "local", "src_vfid": self.vfid, "dst_vfid": target}
        return self.manager("POST", "/folder/clone", params)

    def test_clone(self) -> None:
        """A clone is charged to its own project, in full, and shares its blocks."""
        (self.root / "file").write_bytes(os.urandom(32 * MEBI))
        (self.root / "sub").mkdir()
        os.sync()
        before = os.statvfs(kernel.mount())
        target = self.new_id()
        self.assertEqual(self.clone(target).status, 200)
        os.sync()
        after = os.statvfs(kernel.mount())
        self.assertLess((before.f_bfree - after.f_bfree) * after.f_frsize, 4 * MEBI)
        root = self.path(target)
        number = kernel.project(root).id
        self.assertNotIn(number, (0, kernel.project(self.root).id))
        for path in (root / "file", root / "sub"):
            self.assertEqual(kernel.project(path).id, number)
        self.assertGreaterEqual(self.charge(root).size, 32 * MEBI)

    def test_beyond_limit(self) -> None:
        """A clone that does not fit is refused before anything is copied."""
        (self.root / "file").write_bytes(bytes(8 * MEBI))
        target, root = self.create(4 * MEBI)
        self.full(self.clone(target))
        self.assertEqual(list(root.iterdir()), [])
        self.assertEqual(self.charge(root).size, 0)
        self.limit(16 * MEBI, target)
        self.assertEqual(self.clone(target).status, 200)
        self.assertEqual((root / "file").stat().st_size, 8 * MEBI)


class Deleting(OnVolume):
    """What becomes of a project whose folder is deleted."""

    def test_released(self) -> None:
        """Its limit is lifted, and the registry knows it no more."""
        vfid, root = self.create(8 * MEBI)
        (root / "file").write_bytes(bytes(MEBI))
        number = kernel.project(root).id
        self.assertEqual(services.agent().recorded()[str(root)], number)
        self.done(self.post("/folder/delete", vfid=vfid))
        self.eventually(lambda: number not in kernel.charges())
        self.eventually(lambda: number not in services.agent().named())
        self.assertNotIn(str(root), services.agent().recorded())


class Processes(WireTestCase):
    """Who may do what."""

    def provide(self) -> Daemon:
        """The unprivileged daemon."""
        return services.daemon()

    def capabilities(self, process: Any, which: str) -> tuple[str, int]:
        """The user of a process, and one of its sets of capabilities."""
        lines = Path(f"/proc/{process.pid}/status").read_text().splitlines()
        found = dict(line.split(":\t", 1) for line in lines)
        return found["Uid"].split()[1], int(found[which], 16)

    def test_daemon(self) -> None:
        """The daemon is an ordinary user without any capability."""
        for which in ("CapEff", "CapPrm", "CapBnd"):
            found = self.capabilities(self.daemon.process, which)
            self.assertEqual(found, (str(services.USER), 0))

    def test_agent(self) -> None:
        """The agent has CAP_SYS_ADMIN and CAP_FOWNER, and no other."""
        for which in ("CapEff", "CapPrm", "CapBnd"):
            found = self.capabilities(services.agent().process, which)
            self.assertEqual(found, ("0", 1 << 21 | 1 << 3))


globals().update(dialects(Setting, Counting, Uploading, Cloning, Deleting))

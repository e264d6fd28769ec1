"""
The manager API: volumes and whole vfolders, once in each dialect of vfolder ids.
"""

from __future__ import annotations

import base64
import os
import stat
import time
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

from tests.functional.daemon import claims
from tests.functional.http11 import SMALL, Answer, Case, OnFolder, dialects

MIB = 2**20
GIB = 2**30


class Volumes(Case):
    """What is asked about volumes, without any folder."""

    def test_volumes(self) -> None:
        """The manager lists the volumes with their backend, path and abilities."""
        answer = self.manager("GET", "/volumes")
        self.assertEqual(answer.status, 200)
        volumes = {volume["name"]: volume for volume in answer.json()["volumes"]}
        self.assertEqual(
            volumes["local"],
            {
                "name": "local",
                "backend": "vfs",
                "path": str(self.daemon.volumes["local"]),
                "fsprefix": ".",
                "capabilities": ["vfolder"],
            },
        )
        self.assertEqual(set(volumes), {"local", "second"})

    def test_hwinfo(self) -> None:
        """A vfs volume is healthy."""
        answer = self.manager("GET", "/volume/hwinfo", {"volume": "local"})
        self.assertEqual(answer.json(), {"status": "healthy", "status_info": None, "metadata": {}})

    def test_performance_metric(self) -> None:
        """A vfs volume cannot be measured."""
        answer = self.manager("GET", "/volume/performance-metric", {"volume": "local"})
        self.assert_problem(answer, 400, "unsupported-operation")

    def test_quota(self) -> None:
        """A vfs volume has no quota to read."""
        answer = self.manager("GET", "/volume/quota", {"volume": "local"})
        self.assert_problem(answer, 400, "unsupported-operation")

    def test_set_quota(self) -> None:
        """A vfs volume has no quota to set, in any spelling of the size."""
        for size in (GIB, "1g", "1GiB"):
            params = {"volume": "local", "vfid": None, "size_bytes": size}
            answer = self.manager("PATCH", "/volume/quota", params)
            self.assert_problem(answer, 400, "unsupported-operation")

    def test_set_quota_without_size(self) -> None:
        """A quota needs a size."""
        answer = self.manager("PATCH", "/volume/quota", {"volume": "local"})
        content = self.assert_problem(answer, 400, "invalid-api-params")
        self.assertEqual(set(content["data"]), {"size_bytes"})

    def test_fs_usage(self) -> None:
        """The size of a volume is what statvfs says."""
        answer = self.manager("GET", "/folder/fs-usage", {"volume": "local"})
        self.assertEqual(answer.status, 200)
        usage = answer.json()
        self.assertEqual(set(usage), {"capacity_bytes", "used_bytes"})
        about = os.statvfs(self.daemon.volumes["local"])
        self.assertEqual(usage["capacity_bytes"], about.f_frsize * about.f_blocks)
        used = about.f_frsize * (about.f_blocks - about.f_bavail)
        self.assertLess(abs(usage["used_bytes"] - used), GIB)

    def test_unknown_volume(self) -> None:
        """Every route that names a volume refuses an unknown one as the caller's mistake."""
        vfid, other = self.new_id(), self.new_id()
        base: dict[str, Any] = {"volume": "none", "vfid": vfid}
        move = {"src_relpath": "a", "dst_relpath": "b"}
        clone = {"src_volume": "none", "src_vfid": vfid, "dst_vfid": other}
        calls: tuple[tuple[str, str, dict[str, Any]], ...] = (
            ("GET", "/volume/hwinfo", base),
            ("GET", "/volume/performance-metric", base),
            ("GET", "/volume/quota", base),
            ("PATCH", "/volume/quota", {**base, "size_bytes": 1}),
            ("GET", "/folder/fs-usage", base),
            ("POST", "/folder/create", base),
            ("POST", "/folder/delete", base),
            ("POST", "/folder/clone", {**clone, "dst_volume": "local"}),
            ("POST", "/folder/clone", {**clone, "dst_volume": None}),
            ("POST", "/folder/clone", {**clone, "src_volume": "local", "dst_volume": "none"}),
            ("GET", "/folder/mount", base),
            ("GET", "/folder/metadata", base),
            ("POST", "/folder/metadata", {**base, "payload": ""}),
            ("GET", "/folder/usage", base),
            ("GET", "/folder/used-bytes", base),
            ("POST", "/folder/file/mkdir", {**base, "relpath": "a"}),
            ("POST", "/folder/file/list", {**base, "relpath": "a"}),
            ("POST", "/folder/file/rename", {**base, "relpath": "a", "new_name": "b"}),
            ("POST", "/folder/file/move", {**base, **move}),
            ("POST", "/folder/file/fetch", {**base, "relpath": "a"}),
            ("POST", "/folder/file/upload", {**base, "relpath": "a", "size": 1}),
            ("POST", "/folder/file/delete", {**base, "relpaths": ["a"]}),
        )
        for method, route, params in calls:
            answer = self.manager(method, route, params)
            self.assertEqual(answer.status, 400, f"{route}: {answer.body!r}")
            self.assert_problem(answer, 400)

    def test_volume_by_path(self) -> None:
        """A volume has a name and no other way in."""
        for name in ("../local", "local/", str(self.daemon.volumes["local"])):
            self.assert_problem(self.manager("GET", "/volume/hwinfo", {"volume": name}), 400)


class Creating(OnFolder):
    """Making a vfolder."""

    def create(self, vfid: str, **params: Any) -> Answer:
        """Create a vfolder."""
        return self.post("/folder/create", vfid=vfid, **params)

    def test_create(self) -> None:
        """A new folder is an empty directory where its layout puts it."""
        vfid = self.new_id()
        self.done(self.create(vfid))
        self.assertEqual(list(self.path(vfid).iterdir()), [])

    def test_mode(self) -> None:
        """A new folder has the mode of the original's."""
        umask = os.umask(0)
        os.umask(umask)
        self.assertEqual(stat.S_IMODE(self.root.stat().st_mode), 0o755 & ~umask)

    def test_again(self) -> None:
        """A folder that exists is not created again, and nothing in it is lost."""
        (self.root / "keep").touch()
        self.assert_problem(self.create(self.vfid), 409)
        self.assertTrue((self.root / "keep").exists())

    def test_options(self) -> None:
        """The options of every era are taken."""
        options: tuple[Any, ...] = (
            None,
            {},
            {"quota": None},
            {"quota": 1024},
            {"quota": "1g"},
            {"quota": "1GiB"},
            {"initial_max_size_for_quota_scope": 1024},
        )
        for value in options:
            self.done(self.create(self.new_id(), options=value))

    def test_options_of_another_type(self) -> None:
        """Options that are no object are refused by name."""
        content = self.assert_problem(
            self.create(self.new_id(), options="1g"), 400, "invalid-api-params"
        )
        self.assertIn("options", content["data"])

    def test_later_keys(self) -> None:
        """A manager of a later release may send a mode and more."""
        self.done(self.create(self.new_id(), mode=None, extra_args={}))
        self.done(self.create(self.new_id(), mode=0o755))

    def test_other_volume(self) -> None:
        """A folder is made on the volume that is named, and on no other."""
        vfid = self.new_id()
        self.done(self.create(vfid, volume="second"))
        self.assertTrue(self.path(vfid, "second").is_dir())
        self.assertFalse(self.path(vfid).exists())


class Deleting(OnFolder):
    """Removing a vfolder."""

    def found(self, name: str) -> bool:
        """Whether a file of that name is anywhere on the volume."""
        volume = self.daemon.volumes["local"]
        return any(name in (*dirs, *files) for _, dirs, files in os.walk(volume))

    def test_delete(self) -> None:
        """A deleted folder is gone when the answer comes."""
        (self.root / "d" / "e").mkdir(parents=True)
        (self.root / "d" / "file").write_bytes(b"x")
        self.done(self.post("/folder/delete"))
        self.assertFalse(self.root.exists())

    def test_nothing_stays(self) -> None:
        """The files of a deleted folder do not stay on the volume under another name."""
        name = uuid4().hex
        (self.root / "d").mkdir()
        (self.root / "d" / name).touch()
        self.done(self.post("/folder/delete"))
        self.eventually(lambda: not self.found(name))

    def test_empty_prefixes(self) -> None:
        """The prefix directories go with their last folder."""
        self.done(self.post("/folder/delete"))
        self.eventually(self.prefix_is_tidy)

    def test_sibling(self) -> None:
        """A folder beside the deleted one stays."""
        digits = self.vfid.rpartition("/")[2].replace("-", "")
        other = f"{digits[:4]}{uuid4().hex[4:]}"
        scope = self.vfid.rpartition("/")[0]
        sibling = f"{scope}/{other}" if scope else str(UUID(other))
        self.done(self.post("/folder/create", vfid=sibling))
        (self.path(sibling) / "keep").touch()
        self.done(self.post("/folder/delete"))
        self.assertTrue((self.path(sibling) / "keep").exists())

    def test_missing(self) -> None:
        """Deleting a folder that is gone is no error."""
        self.done(self.post("/folder/delete", vfid=self.new_id()))

    def test_twice(self) -> None:
        """A delete that is repeated after a lost answer is no error."""
        self.done(self.post("/folder/delete"))
        self.done(self.post("/folder/delete"))

    def test_create_again(self) -> None:
        """A folder can be created anew at once, and is empty."""
        (self.root / "old").touch()
        self.done(self.post("/folder/delete"))
        self.done(self.post("/folder/create"))
        self.assertEqual(list(self.root.iterdir()), [])

    def test_links(self) -> None:
        """What a link in a deleted folder points to stays."""
        (self.root / "dir").symlink_to(self.outside)
        (self.root / "file").symlink_to(self.outside / "secret.txt")
        self.done(self.post("/folder/delete"))
        self.eventually(self.prefix_is_tidy)
        self.assert_untouched()

    def test_odd_names(self) -> None:
        """Names that are no text and deep trees are deleted too."""
        deep = self.root / "/".join(["d" * 100] * 30)
        deep.mkdir(parents=True)
        os.close(os.open(os.fsencode(self.root) + b"/\xff\xfe", os.O_CREAT | os.O_WRONLY))
        self.done(self.post("/folder/delete"))
        self.eventually(lambda: not self.found("d" * 100))


class Mounting(OnFolder):
    """Where a vfolder lies."""

    def mount(self, **params: Any) -> Answer:
        """Ask for the mount path."""
        return self.ask("GET", "/folder/mount", **params)

    def test_path(self) -> None:
        """The answer is the absolute path of the folder."""
        self.assertEqual(self.mount().json(), {"path": str(self.root)})

    def test_subpath(self) -> None:
        """A subpath is checked and not joined."""
        (self.root / "sub").mkdir()
        for subpath in (".", "", "sub", "./sub", "not/there"):
            answer = self.mount(subpath=subpath)
            self.assertEqual((answer.status, answer.json()), (200, {"path": str(self.root)}))

    def test_missing_folder(self) -> None:
        """A missing folder is told in the words that managers know."""
        vfid = self.new_id()
        content = self.assert_problem(self.mount(vfid=vfid), 400)
        self.assertEqual(content["msg"], "VFolder not found")
        self.assertEqual(content["vfid"], vfid)

    def test_escape(self) -> None:
        """A subpath out of the folder is told in the words that managers know."""
        for subpath in self.escapes():
            content = self.assert_problem(self.mount(subpath=subpath), 400)
            self.assertEqual(content["msg"], "Invalid vfolder subpath", subpath)
            self.assertEqual(content["vfid"], self.vfid)
            self.assertEqual(content["subpath"], subpath)

    def test_absolute_subpath(self) -> None:
        """An absolute subpath is refused."""
        self.assert_problem(self.mount(subpath="/etc"), 400)


class Measuring(OnFolder):
    """How much is in a vfolder."""

    def usage(self) -> Any:
        """Ask for the usage."""
        answer = self.ask("GET", "/folder/usage")
        self.assertEqual(answer.status, 200, answer.body)
        return answer.json()

    def test_empty(self) -> None:
        """An empty folder counts nothing."""
        self.assertEqual(self.usage(), {"file_count": 0, "used_bytes": 0})

    def test_tree(self) -> None:
        """All files of a tree are counted, and the directories are not."""
        (self.root / "a" / "b").mkdir(parents=True)
        (self.root / "a" / "b" / "one").write_bytes(b"x" * 1000)
        (self.root / "two").write_bytes(b"x" * 234)
        self.assertEqual(self.usage(), {"file_count": 2, "used_bytes": 1234})

    def test_links(self) -> None:
        """A link counts as what it is, not as what it points to."""
        (self.root / "out").symlink_to(self.outside)
        (self.root / "broken").symlink_to("nowhere")
        (self.root / "loop").symlink_to("loop")
        used = len(str(self.outside)) + len("nowhere") + len("loop")
        self.assertEqual(self.usage(), {"file_count": 3, "used_bytes": used})

    def test_missing_folder(self) -> None:
        """A missing folder has no usage."""
        answer = self.ask("GET", "/folder/usage", vfid=self.new_id())
        self.assert_problem(answer, 404)

    def test_used_bytes(self) -> None:
        """The used bytes alone can be asked for."""
        (self.root / "a").write_bytes(b"x" * 100_000)
        answer = self.ask("GET", "/folder/used-bytes")
        self.assertEqual(answer.status, 200, answer.body)
        self.assertEqual(set(answer.json()), {"used_bytes"})
        self.assertGreaterEqual(answer.json()["used_bytes"], 98_000)
        self.assertLess(answer.json()["used_bytes"], 200_000)

    def test_used_bytes_of_a_missing_folder(self) -> None:
        """A missing folder uses no bytes to be told."""
        answer = self.ask("GET", "/folder/used-bytes", vfid=self.new_id())
        self.assert_problem(answer, 404)

    def test_quota_of_a_folder(self) -> None:
        """The quota of a folder is refused in every dialect as unsupported."""
        answer = self.ask("GET", "/volume/quota")
        self.assert_problem(answer, 400, "unsupported-operation")

    def test_set_quota_of_a_folder(self) -> None:
        """Setting the quota of a folder is refused as unsupported."""
        answer = self.ask("PATCH", "/volume/quota", size_bytes="1g")
        self.assert_problem(answer, 400, "unsupported-operation")


class Metadata(OnFolder):
    """The bytes that a manager keeps with a vfolder."""

    def store(self, payload: Any, **params: Any) -> Answer:
        """Store metadata."""
        return self.post("/folder/metadata", payload=payload, **params)

    def load(self, **params: Any) -> Answer:
        """Load metadata."""
        return self.ask("GET", "/folder/metadata", **params)

    def test_none(self) -> None:
        """A folder has no metadata at first."""
        answer = self.load()
        self.assertEqual((answer.status, answer.json()), (200, {"status": "ok", "payload": ""}))

    def test_round_trip(self) -> None:
        """The same bytes come back, and lie in the folder as they are."""
        data = bytes(range(256)) * 5
        payload = base64.b64encode(data).decode()
        answer = self.store(payload)
        self.assertEqual((answer.status, answer.json()), (200, {"status": "ok"}))
        self.assertEqual(self.load().json(), {"status": "ok", "payload": payload})
        self.assertEqual((self.root / "metadata.json").read_bytes(), data)

    def test_replace(self) -> None:
        """New metadata replaces the old, also when it is shorter."""
        self.store(base64.b64encode(b"x" * 100).decode())
        self.store(base64.b64encode(b"{}").decode())
        self.assertEqual((self.root / "metadata.json").read_bytes(), b"{}")

    def test_ten_mebibytes(self) -> None:
        """Ten mebibytes are kept."""
        payload = base64.b64encode(b"x" * (10 * MIB)).decode()
        self.assertEqual(self.store(payload).status, 200)
        self.assertEqual(self.load().json()["payload"], payload)

    def test_more(self) -> None:
        """More than ten mebibytes are refused, and what was there stays."""
        self.store("e30=")
        payload = base64.b64encode(b"x" * (10 * MIB + 1)).decode()
        self.assert_problem(self.store(payload), 413)
        self.assertEqual(self.load().json()["payload"], "e30=")

    def test_no_base64(self) -> None:
        """What is no base64 is refused by name."""
        for payload in ("e30", "{}", "e3 0=", "é", 7, None):
            content = self.assert_problem(self.store(payload), 400, "invalid-api-params")
            self.assertIn("payload", content["data"], repr(payload))

    def test_missing_payload(self) -> None:
        """Storing nothing is refused by name."""
        content = self.assert_problem(self.post("/folder/metadata"), 400, "invalid-api-params")
        self.assertEqual(set(content["data"]), {"payload"})

    def test_missing_folder(self) -> None:
        """A missing folder has no metadata."""
        vfid = self.new_id()
        self.assert_problem(self.load(vfid=vfid), 404)
        self.assert_problem(self.store("e30=", vfid=vfid), 404)
        self.assertFalse(self.path(vfid).exists())

    def test_link(self) -> None:
        """Metadata is neither written nor read through a link out of the folder."""
        (self.root / "metadata.json").symlink_to(self.outside / "secret.txt")
        self.assertNotIn(base64.b64encode(b"not yours"), self.load().body)
        self.store("e30=")
        self.assert_untouched()


class Cloning(OnFolder):
    """Copying a vfolder."""

    def setUp(self) -> None:
        """Have a folder with something in it."""
        super().setUp()
        (self.root / "d" / "empty").mkdir(parents=True)
        (self.root / "d" / "file").write_bytes(b"content")
        self.copy = self.new_id()

    def clone(self, **params: Any) -> Answer:
        """Clone the folder of the test."""
        base = {"src_volume": "local", "src_vfid": self.vfid, "dst_vfid": self.copy}
        return self.manager("POST", "/folder/clone", {**base, **params})

    def cloned(self, answer: Answer, volume: str = "local") -> Path:
        """Check the answer and the copy, and return where the copy lies."""
        self.assertEqual(answer.status, 200, answer.body)
        self.assertEqual(set(answer.json()), {"bgtask_id"})
        UUID(answer.json()["bgtask_id"])
        copy = self.path(self.copy, volume)
        self.assertEqual((copy / "d" / "file").read_bytes(), b"content")
        self.assertTrue((copy / "d" / "empty").is_dir())
        return copy

    def test_clone(self) -> None:
        """A clone is there when the answer comes, which names a task as later releases do."""
        self.cloned(self.clone(dst_volume="local", options=None))
        self.assertEqual((self.root / "d" / "file").read_bytes(), b"content")

    def test_no_target_volume(self) -> None:
        """Without a target volume the clone lies on the source's."""
        self.cloned(self.clone())

    def test_null_target_volume(self) -> None:
        """A target volume of null is the source's."""
        self.cloned(self.clone(dst_volume=None))

    def test_other_volume(self) -> None:
        """A folder is cloned onto another volume."""
        self.cloned(self.clone(dst_volume="second"), "second")
        self.assertFalse(self.path(self.copy).exists())

    def test_other_dialect(self) -> None:
        """A folder is cloned from one dialect of ids to the other."""
        self.copy = str(uuid4()) if "/" in self.vfid else f"project:{uuid4()}/{uuid4().hex}"
        self.cloned(self.clone())

    def test_existing_target(self) -> None:
        """A manager that makes the target first is served, and what is in it stays."""
        self.post("/folder/create", vfid=self.copy)
        (self.path(self.copy) / "keep").write_bytes(b"kept")
        copy = self.cloned(self.clone(dst_volume="local"))
        self.assertEqual((copy / "keep").read_bytes(), b"kept")

    def test_failure_keeps_the_target(self) -> None:
        """A clone that fails does not take away a target that it did not make."""
        self.post("/folder/create", vfid=self.copy)
        target = self.path(self.copy)
        (target / "d").write_bytes(b"in the way")
        (target / "keep").write_bytes(b"kept")
        self.assert_problem(self.clone(), 400)
        self.assertEqual((target / "keep").read_bytes(), b"kept")
        self.assertEqual((target / "d").read_bytes(), b"in the way")

    def test_modes_and_times(self) -> None:
        """Permissions and times are those of the source."""
        source = self.root / "d" / "file"
        source.chmod(0o640)
        os.utime(source, ns=(10**18, 10**18 + 123_456_789))
        copy = self.cloned(self.clone()) / "d" / "file"
        self.assertEqual(stat.S_IMODE(copy.stat().st_mode), 0o640)
        self.assertEqual(copy.stat().st_mtime_ns, 10**18 + 123_456_789)

    def test_links(self) -> None:
        """Links are copied as links, wherever they point to."""
        targets = {
            "out": str(self.outside / "secret.txt"),
            "outdir": str(self.outside),
            "broken": "nowhere",
            "inner": "d/file",
            "loop": "loop",
        }
        for name, target in targets.items():
            (self.root / name).symlink_to(target)
        copy = self.cloned(self.clone())
        self.assertEqual({name: os.readlink(copy / name) for name in targets}, targets)

    def test_link_in_the_target(self) -> None:
        """A clone into an existing target does not write through a link in it."""
        self.post("/folder/create", vfid=self.copy)
        (self.path(self.copy) / "d").symlink_to(self.outside)
        self.clone()
        self.assert_untouched()

    def test_fifo(self) -> None:
        """A FIFO in the source does not keep the manager waiting."""
        os.mkfifo(self.root / "fifo")
        self.assertLess(self.clone().status, 500)
        self.alive()

    def test_missing_source(self) -> None:
        """A missing source is told, and no target is left behind."""
        self.assert_problem(self.clone(src_vfid=self.new_id()), 404)
        self.assertFalse(self.path(self.copy).exists())

    def test_unknown_target_volume(self) -> None:
        """An unknown target volume is the caller's mistake."""
        self.assert_problem(self.clone(dst_volume="none"), 400)


class MakingDirectories(OnFolder):
    """Making directories in a vfolder."""

    def mkdir(self, relpath: Any, **params: Any) -> Answer:
        """Make one or more directories."""
        return self.post("/folder/file/mkdir", relpath=relpath, **params)

    def results(self, answer: Answer, status: int) -> tuple[list[str], list[str]]:
        """Check the shape of the results, and return what succeeded and what failed."""
        self.assertEqual(answer.status, status, answer.body)
        content = answer.json()
        results = content["results"]
        self.assertEqual(set(results), {"success", "failed"})
        for item in results["success"]:
            self.assertEqual(set(item), {"msg", "item"})
            self.assertIsNone(item["msg"])
        for item in results["failed"]:
            self.assertEqual(set(item), {"msg", "item"})
            self.assertIsInstance(item["msg"], str)
            self.assertNotIn(str(self.daemon.root), item["msg"])
        if status >= 400:
            self.assertIsInstance(content["msg"], str)
            self.assertIsInstance(content["error_code"], str)
        success = [item["item"] for item in results["success"]]
        return success, [item["item"] for item in results["failed"]]

    def test_one(self) -> None:
        """A directory is made, and reported as managers since 24.03 need it."""
        self.assertEqual(self.results(self.mkdir("a"), 200), (["a"], []))
        self.assertTrue((self.root / "a").is_dir())

    def test_mode(self) -> None:
        """A new directory has the mode of the original's."""
        self.mkdir("a")
        umask = os.umask(0)
        os.umask(umask)
        self.assertEqual(stat.S_IMODE((self.root / "a").stat().st_mode), 0o755 & ~umask)

    def test_parents(self) -> None:
        """Missing parents are made unless it is asked otherwise."""
        self.results(self.mkdir("a/b/c"), 200)
        self.assertTrue((self.root / "a" / "b" / "c").is_dir())

    def test_no_parents(self) -> None:
        """Missing parents are not made when it is asked so."""
        self.assertEqual(self.results(self.mkdir("a/b", parents=False), 422), ([], ["a/b"]))
        self.assertFalse((self.root / "a").exists())

    def test_existing(self) -> None:
        """A directory that exists is a failure unless it is asked otherwise."""
        (self.root / "a").mkdir()
        self.assertEqual(self.results(self.mkdir("a"), 422), ([], ["a"]))

    def test_exist_ok(self) -> None:
        """A directory that exists is fine when it is asked so."""
        (self.root / "a").mkdir()
        self.assertEqual(self.results(self.mkdir("a", exist_ok=True), 200), (["a"], []))

    def test_exist_ok_over_a_file(self) -> None:
        """A file is not a directory that exists."""
        (self.root / "a").write_bytes(b"x")
        self.assertEqual(self.results(self.mkdir("a", exist_ok=True), 422), ([], ["a"]))
        self.assertEqual((self.root / "a").read_bytes(), b"x")

    def test_below_a_file(self) -> None:
        """A file has no directories in it."""
        (self.root / "a").write_bytes(b"x")
        self.results(self.mkdir("a/b"), 422)

    def test_list(self) -> None:
        """Several directories are made at once."""
        self.assertEqual(self.results(self.mkdir(["a", "b/c"]), 200), (["a", "b/c"], []))
        self.assertTrue((self.root / "b" / "c").is_dir())

    def test_partial(self) -> None:
        """What could be made is made, and both are reported."""
        (self.root / "b").mkdir()
        answer = self.mkdir(["a", "b", "c"])
        self.assertEqual(self.results(answer, 207), (["a", "c"], ["b"]))
        self.assertTrue((self.root / "c").is_dir())

    def test_all_failed(self) -> None:
        """When nothing could be made the whole is a failure."""
        (self.root / "a").mkdir()
        (self.root / "b").touch()
        self.assertEqual(self.results(self.mkdir(["a", "b"]), 422), ([], ["a", "b"]))

    def test_fifty(self) -> None:
        """Fifty directories are made at once."""
        names = [f"d{number}" for number in range(50)]
        self.assertEqual(self.results(self.mkdir(names), 200), (names, []))

    def test_more_than_fifty(self) -> None:
        """More than fifty directories are refused, and none is made."""
        names = [f"d{number}" for number in range(51)]
        self.assert_problem(self.mkdir(names), 400)
        self.assertEqual(list(self.root.iterdir()), [])

    def test_no_paths(self) -> None:
        """What is neither a path nor a list of paths is refused by name."""
        for relpath in (7, None, {"a": "b"}, [7], ["/a"], "/a"):
            content = self.assert_problem(self.mkdir(relpath), 400, "invalid-api-params")
            self.assertIn("relpath", content["data"], repr(relpath))

    def test_escape(self) -> None:
        """No directory is made outside of the folder."""
        for relpath in self.escapes():
            self.assertIn(self.mkdir(relpath, exist_ok=True).status, (400, 422), relpath)
        self.assert_untouched()

    def test_link_inside(self) -> None:
        """A directory is made through a link that stays inside of the folder."""
        (self.root / "a").mkdir()
        (self.root / "link").symlink_to("a")
        self.results(self.mkdir("link/b"), 200)
        self.assertTrue((self.root / "a" / "b").is_dir())

    def test_missing_folder(self) -> None:
        """A missing folder is not made by the way."""
        vfid = self.new_id()
        self.assert_problem(self.mkdir("a", vfid=vfid), 404)
        self.assertFalse(self.path(vfid).exists())


class UploadSessions(OnFolder):
    """Beginning an upload."""

    def upload(self, relpath: Any = "file", size: Any = 10, **params: Any) -> Answer:
        """Ask for an upload session."""
        return self.post("/folder/file/upload", relpath=relpath, size=size, **params)

    def test_token(self) -> None:
        """The token says what the original's says."""
        answer = self.upload("./d//file", 10)
        self.assertEqual(answer.status, 200, answer.body)
        self.assertEqual(set(answer.json()), {"token"})
        content = claims(answer.json()["token"])
        self.assertEqual(content["op"], "upload")
        self.assertEqual(content["volume"], "local")
        self.assertEqual(content["vfid"], self.vfid)
        self.assertEqual(content["relpath"], "d/file")
        self.assertEqual(content["size"], 10)
        self.assertRegex(content["session"], r"\A[0-9a-f]{32}\Z")
        self.assertLess(abs(content["exp"] - time.time() - 86400), 60)

    def test_staging(self) -> None:
        """An empty staging file waits where an upstream proxy looks for it."""
        session = claims(self.upload().json()["token"])["session"]
        self.assertEqual((self.root / ".upload" / session).read_bytes(), b"")
        self.assertFalse((self.root / "file").exists())

    def test_sessions_differ(self) -> None:
        """Two sessions for one path do not know of each other."""
        tokens = [claims(self.upload().json()["token"]) for _ in range(2)]
        self.assertNotEqual(tokens[0]["session"], tokens[1]["session"])

    def test_size_in_words(self) -> None:
        """A size may be a numeral."""
        self.assertEqual(claims(self.upload(size="10").json()["token"])["size"], 10)

    def test_no_size(self) -> None:
        """What is no size is refused by name."""
        sizes: tuple[Any, ...] = ("ten", None, [], "1g")
        for size in sizes:
            content = self.assert_problem(self.upload(size=size), 400, "invalid-api-params")
            self.assertIn("size", content["data"], repr(size))

    def test_negative(self) -> None:
        """A negative size is refused."""
        for size in (-1, "-1"):
            self.assert_problem(self.upload(size=size), 400)
        self.assertEqual(list(self.root.iterdir()), [])

    def test_too_large(self) -> None:
        """A size above the limit of an upload is refused when the session is asked for."""
        self.assert_problem(self.upload(size=100 * GIB + 1), 413)
        self.assertEqual(list(self.root.iterdir()), [])

    def test_empty_file(self) -> None:
        """A file of no bytes is there at once, and nothing is left of its session."""
        self.assertEqual(self.upload("a/b/file", 0).status, 200)
        self.assertEqual((self.root / "a" / "b" / "file").read_bytes(), b"")
        self.assertFalse((self.root / ".upload").exists())

    def test_empty_file_replaces(self) -> None:
        """A file of no bytes replaces the one of that name."""
        (self.root / "file").write_bytes(b"old")
        self.upload(size=0)
        self.assertEqual((self.root / "file").read_bytes(), b"")

    def test_missing_folder(self) -> None:
        """A missing folder takes no uploads, and is not made by the way."""
        for size in (0, 10):
            vfid = self.new_id()
            self.assert_problem(self.upload(vfid=vfid, size=size), 404)
            self.assertFalse(self.path(vfid).exists())

    def test_escape(self) -> None:
        """A path out of the folder is refused when the session is asked for."""
        for relpath in self.escapes():
            for size in (0, 10):
                self.assert_problem(self.upload(relpath, size), 400)
        self.assert_untouched()

    def test_root(self) -> None:
        """The folder itself is no file to upload."""
        for relpath in (".", ""):
            self.assert_problem(self.upload(relpath), 400)
            self.assert_problem(self.upload(relpath, 0), 400)

    def test_linked_staging(self) -> None:
        """A staging directory that is a link out of the folder is not used."""
        (self.root / ".upload").symlink_to(self.outside)
        self.upload()
        self.upload(size=0)
        self.assert_untouched()


class DownloadSessions(OnFolder):
    """Beginning a download."""

    def download(self, relpath: Any = "file", **params: Any) -> Answer:
        """Ask for a download token."""
        return self.post("/folder/file/download", relpath=relpath, **params)

    def test_token(self) -> None:
        """The token says what the original's says, and no more."""
        answer = self.download("./d//file", archive=True, unmanaged_path="/etc")
        self.assertEqual(answer.status, 200, answer.body)
        self.assertEqual(set(answer.json()), {"token"})
        content = claims(answer.json()["token"])
        self.assertLess(abs(content.pop("exp") - time.time() - 86400), 60)
        self.assertEqual(
            content,
            {"op": "download", "volume": "local", "vfid": self.vfid, "relpath": "d/file"},
        )

    def test_nothing_is_checked(self) -> None:
        """A token is given for a file that does not exist, in a folder that does not."""
        self.assertEqual(self.download("not/there").status, 200)
        self.assertEqual(self.download(vfid=self.new_id()).status, 200)

    def test_absolute_path(self) -> None:
        """A token is not given for an absolute path."""
        content = self.assert_problem(self.download("/etc/passwd"), 400, "invalid-api-params")
        self.assertIn("relpath", content["data"])


class DeletedIsGone(OnFolder):
    """``delete-status = 410``, for managers since 25.12 without Redis."""

    manager_settings = "delete-status = 410"

    def test_gone(self) -> None:
        """A delete is answered as gone, and the folder is."""
        self.assert_problem(self.post("/folder/delete"), 410)
        self.assertFalse(self.root.exists())

    def test_missing(self) -> None:
        """A folder that does not exist is gone as well."""
        self.assert_problem(self.post("/folder/delete", vfid=self.new_id()), 410)


class DeletedIsTask(OnFolder):
    """``delete-status = 202``, for managers that wait for an event."""

    manager_settings = "delete-status = 202"

    def test_accepted(self) -> None:
        """A delete is answered with the id of a task, and the folder is gone."""
        answer = self.post("/folder/delete")
        self.assertEqual(answer.status, 202)
        self.assertEqual(set(answer.json()), {"bgtask_id"})
        UUID(answer.json()["bgtask_id"])
        self.assertFalse(self.root.exists())


class SmallUploads(OnFolder):
    """``max-upload-size`` as an operator sets it."""

    settings = SMALL

    def test_limit(self) -> None:
        """An upload of just the limit is taken, and one byte more is refused."""
        for size, status in ((MIB, 200), (MIB + 1, 413)):
            answer = self.post("/folder/file/upload", relpath="file", size=size)
            self.assertEqual(answer.status, status)


globals().update(
    dialects(
        Volumes,
        Creating,
        Deleting,
        Mounting,
        Measuring,
        Metadata,
        Cloning,
        MakingDirectories,
        UploadSessions,
        DownloadSessions,
        DeletedIsGone,
        DeletedIsTask,
        SmallUploads,
    )
)

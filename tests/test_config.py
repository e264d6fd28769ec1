# -*- test-case-name: tests.test_config -*-
"""
The configuration: what the original's file means here, and what is said of a wrong one.
"""

from __future__ import annotations

import copy
import grp
import os
import pwd
import stat
import threading
import time
import tomllib
from ipaddress import ip_network
from pathlib import Path
from typing import Any
from unittest import mock

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

import storageproxy
from storageproxy import config
from storageproxy.config import (
    Configuration,
    ConfigurationError,
    check,
    find_file,
    load,
    standalone,
)
from storageproxy.schema import Complaint, structure
from tests.strategies import QUICK, SLOW, json_values

SAMPLE = Path(storageproxy.__file__).absolute().parent.parent / "etc" / "storage-proxy.toml"

#: As 22.03 has it, with all keys that it requires.
MINIMAL = """
[etcd]
namespace = "local"
addr = { host = "127.0.0.1", port = 2379 }
user = ""
password = ""

[storage-proxy]
node-id = "i-storage-proxy-01"
secret = "the-token-secret"
session-expire = "1d"

[api.client]
service-addr = { host = "0.0.0.0", port = 6021 }
ssl-enabled = false

[api.manager]
service-addr = { host = "127.0.0.1", port = 6022 }
ssl-enabled = false
secret = "the-manager-secret"

[volume.local]
backend = "vfs"
path = "PATH"

[debug]
enabled = false

[logging]
level = "INFO"
drivers = ["console"]

[logging.pkg-ns]
"" = "WARNING"

[logging.console]
colored = true
format = "verbose"
"""

#: A table that has been taken out.
GONE = object()


class ConfigurationCase(SynchronousTestCase):
    """What tests of configurations have in common."""

    def setUp(self) -> None:
        """Make a volume, and a table that is right."""
        self.path = os.path.abspath(self.mktemp())
        os.mkdir(self.path)
        self.minimal = MINIMAL.replace("PATH", self.path)

    def table(self, changes: dict[str, Any]) -> dict[str, Any]:
        """The minimal table with some changes: dotted key to value, or to GONE."""
        table = tomllib.loads(self.minimal)
        for key, value in changes.items():
            *above, last = key.split(".")
            here = table
            for step in above:
                here = here.setdefault(step, {})
            if value is GONE:
                del here[last]
            else:
                here[last] = value
        return table

    def with_key(self, key: str, value: Any) -> Configuration:
        """The minimal configuration with one key changed."""
        return check(self.table({key: value}))

    def problems(self, changes: dict[str, Any]) -> list[str]:
        """What is complained about."""
        error = self.assertRaises(ConfigurationError, check, self.table(changes))
        return list(error.problems)

    def assertProblem(self, key: str, value: Any, named: str = "") -> str:
        """Assert that there is one line of complaint, which names the key; return the rest."""
        [problem] = self.problems({key: value})
        self.assertTrue(problem.startswith(f"{named or key}: "), problem)
        self.assertNotIn("\n", problem)
        self.assertNotIn("object has no attribute", problem)
        self.assertNotIn("not iterable", problem)
        return problem


class DefaultTests(ConfigurationCase):
    """What holds when the file does not say."""

    def test_minimal(self) -> None:
        """The smallest file of 22.03 is enough, and all else is as it was there."""
        found = check(tomllib.loads(self.minimal))
        proxy = found.storage_proxy
        self.assertEqual(proxy.node_id, "i-storage-proxy-01")
        self.assertEqual(proxy.secret, "the-token-secret")
        self.assertEqual(proxy.session_expire, 86400)
        self.assertEqual(proxy.num_proc, os.cpu_count())
        self.assertEqual(proxy.pid_file, "/dev/null")
        self.assertEqual(proxy.scandir_limit, 1000)
        self.assertEqual(proxy.max_upload_size, 100 * 2**30)
        self.assertEqual((proxy.user, proxy.group), (-2, -2))
        client, manager = found.api.client, found.api.manager
        self.assertEqual(client.service_addr, ("0.0.0.0", 6021))
        self.assertEqual(manager.service_addr, ("127.0.0.1", 6022))
        self.assertEqual(manager.secret, "the-manager-secret")
        self.assertEqual(manager.delete_status, 204)
        for listener in (client, manager):
            self.assertIs(listener.ssl_enabled, False)
            self.assertIsNone(listener.ssl_cert)
            self.assertIsNone(listener.ssl_privkey)
        self.assertEqual(list(found.volume), ["local"])
        volume = found.volume["local"]
        self.assertEqual((volume.backend, volume.fsprefix), ("vfs", "."))
        self.assertEqual(volume.path, os.path.realpath(self.path))
        self.assertEqual(volume.options, {})
        self.assertIs(found.debug.enabled, False)
        self.assertEqual(found.logging.level, "INFO")
        self.assertEqual(found.logging.drivers, ["console"])
        self.assertIsNone(found.logging.file)
        self.assertEqual(found.ignored, ("etcd",))

    def test_without_what_is_not_needed(self) -> None:
        """Sections that mean little here may be left out."""
        found = check(self.table({"etcd": GONE, "debug": GONE, "logging": GONE}))
        self.assertEqual(found.logging, config.LoggingSettings())
        self.assertEqual(found.debug, config.DebugSettings())
        self.assertEqual(found.ignored, ())

    def test_file_log(self) -> None:
        """A log file has the original's defaults."""
        wanted = {"path": "/tmp", "filename": "x.log"}
        found = self.with_key("logging.file", wanted).logging.file
        assert found is not None
        self.assertEqual((found.path, found.filename), ("/tmp", "x.log"))
        self.assertEqual((found.backup_count, found.rotation_size), (5, 10 * 2**20))

    def test_secrets_are_not_shown(self) -> None:
        """A configuration can be logged: its secrets are not in it."""
        found = check(tomllib.loads(self.minimal))
        for shown in (repr(found), str(found)):
            self.assertNotIn("the-token-secret", shown)
            self.assertNotIn("the-manager-secret", shown)
            self.assertIn("i-storage-proxy-01", shown)


class SpellingTests(ConfigurationCase):
    """All the ways in which a value can be written."""

    def test_addresses(self) -> None:
        """An address can be text, a table or a pair; its host may be blank."""
        for value, expected in [
            ("127.0.0.1:6021", ("127.0.0.1", 6021)),
            (":6021", ("", 6021)),
            ("[::1]:6021", ("::1", 6021)),
            ("::1:6021", ("::1", 6021)),
            ("proxy.example:65535", ("proxy.example", 65535)),
            ({"host": "h", "port": 6021}, ("h", 6021)),
            ({"host": "", "port": "6021"}, ("", 6021)),
            (["h", 6021], ("h", 6021)),
            (["h", "6021"], ("h", 6021)),
        ]:
            for api in ("client", "manager"):
                found = self.with_key(f"api.{api}.service-addr", value)
                self.assertEqual(getattr(found.api, api).service_addr, expected, value)

    def test_flags(self) -> None:
        """A flag can be a word or a number."""
        for value in (True, "true", "yes", "on", 1, "1", "T", "Y"):
            self.assertIs(self.with_key("debug.enabled", value).debug.enabled, True)
        for value in (False, "false", "no", "off", 0, "0", "none"):
            self.assertIs(self.with_key("debug.enabled", value).debug.enabled, False)
            found = self.with_key("api.client.ssl-enabled", value)
            self.assertIs(found.api.client.ssl_enabled, False)

    def test_sizes(self) -> None:
        """A size can be a number, or have a unit."""
        for value, expected in [
            (1000, 1000),
            ("100g", 100 * 2**30),
            ("1GiB", 2**30),
            ("1_000", 1000),
        ]:
            found = self.with_key("storage-proxy.max-upload-size", value)
            self.assertEqual(found.storage_proxy.max_upload_size, expected)
        found = self.with_key("storage-proxy.max-upload-size", "inf")
        self.assertGreaterEqual(found.storage_proxy.max_upload_size, 2**63 - 1)

    def test_times(self) -> None:
        """So can a time."""
        for value, expected in [
            (3600, 3600),
            (1.5, 1.5),
            ("90", 90),
            ("1.5h", 5400),
            ("2w", 1209600),
            ("30m", 1800),
        ]:
            found = self.with_key("storage-proxy.session-expire", value)
            self.assertEqual(found.storage_proxy.session_expire, expected)

    def test_users(self) -> None:
        """A user can be a name, a number, as text also, the current one, or the owner's."""
        current = pwd.getpwuid(os.getuid())
        group = grp.getgrgid(current.pw_gid)
        for key, name, own in (
            ("user", current.pw_name, current.pw_uid),
            ("group", group.gr_name, group.gr_gid),
        ):
            for value, expected in [
                (name, own),
                (0, 0),
                (1234, 1234),
                (987654, 987654),
                (-1, -1),
                ("", -2),
            ]:
                found = self.with_key(f"storage-proxy.{key}", value).storage_proxy
                self.assertEqual(getattr(found, key), expected, value)

    def test_users_as_text(self) -> None:
        """A number in quotes is a number, as in the original."""
        for key in ("user", "group"):
            for value, expected in (("0", 0), ("1234", 1234), ("-1", -1)):
                found = self.with_key(f"storage-proxy.{key}", value).storage_proxy
                self.assertEqual(getattr(found, key), expected, value)

    def test_other_keys(self) -> None:
        """The remaining keys of [storage-proxy] are taken as they are."""
        found = check(
            self.table(
                {
                    "storage-proxy.num-proc": 64,
                    "storage-proxy.pid-file": "/run/x.pid",
                    "storage-proxy.scandir-limit": 0,
                    "storage-proxy.event-loop": "uvloop",
                }
            )
        )
        proxy = found.storage_proxy
        self.assertEqual((proxy.num_proc, proxy.pid_file), (64, "/run/x.pid"))
        self.assertEqual(proxy.scandir_limit, 0)
        self.assertIn("storage-proxy.event-loop", found.ignored)

    def test_delete_status(self) -> None:
        """How a deletion is answered can be told, for managers of each era."""
        for status in (202, 204, 410):
            found = self.with_key("api.manager.delete-status", status)
            self.assertEqual(found.api.manager.delete_status, status)

    def test_handover(self) -> None:
        """Proxies that may be told where files are: addresses, networks, and a place for each."""
        found = check(
            self.table(
                {
                    "api.client.trusted-proxies": ["127.0.0.1", "10.0.0.0/8", "::1"],
                    "volume.local.x-accel-redirect": "/files/",
                }
            )
        )
        self.assertEqual(
            found.api.client.trusted_proxies,
            (ip_network("127.0.0.1/32"), ip_network("10.0.0.0/8"), ip_network("::1/128")),
        )
        self.assertEqual(found.volume["local"].x_accel_redirect, "/files/")

    def test_certificates(self) -> None:
        """A listener with TLS has its certificate and key."""
        file = self.mktemp()
        Path(file).touch()
        found = check(
            self.table(
                {
                    f"api.client.{key}": value
                    for key, value in (
                        ("ssl-enabled", "yes"),
                        ("ssl-cert", file),
                        ("ssl-privkey", file),
                    )
                }
            )
        )
        client = found.api.client
        self.assertEqual(
            (client.ssl_enabled, client.ssl_cert, client.ssl_privkey), (True, file, file)
        )

    def test_volumes(self) -> None:
        """There may be many volumes; each has its path without symbolic links."""
        link = os.path.abspath(self.mktemp())
        os.symlink(self.path, link)
        found = check(
            self.table(
                {
                    "volume.linked": {"backend": "vfs", "path": link, "fsprefix": "a/b"},
                    "volume.tuned": {
                        "backend": "vfs",
                        "path": self.path,
                        "options": {"threads": 8, "deadline": "1m"},
                    },
                }
            )
        )
        self.assertEqual(set(found.volume), {"local", "linked", "tuned"})
        self.assertEqual(found.volume["linked"].path, os.path.realpath(self.path))
        self.assertEqual(found.volume["linked"].fsprefix, "a/b")
        self.assertEqual(found.volume["tuned"].options, {"threads": 8, "deadline": "1m"})

    def test_logging(self) -> None:
        """Levels and drivers of the original are known."""
        for level in ("NOTSET", "DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL", "info"):
            self.assertEqual(self.with_key("logging.level", level).logging.level, level)
        found = check(
            self.table(
                {
                    "logging.drivers": ["console", "file", "logstash"],
                    "logging.file": {
                        "path": "/tmp",
                        "filename": "x",
                        "backup-count": 10,
                        "rotation-size": "1M",
                        "format": "verbose",
                    },
                    "logging.logstash": {
                        "endpoint": {"host": "h", "port": 1},
                        "protocol": "zmq.push",
                    },
                }
            )
        )
        assert found.logging.file is not None
        self.assertEqual(found.logging.file.backup_count, 10)
        self.assertEqual(found.logging.file.rotation_size, 2**20)
        self.assertIn("logging.logstash", found.ignored)

    def test_snake_case(self) -> None:
        """Keys may have underscores, as in later releases."""
        table = tomllib.loads(self.minimal)

        def snakes(value: Any) -> Any:
            if not isinstance(value, dict):
                return value
            return {key.replace("-", "_"): snakes(item) for key, item in value.items()}

        self.assertEqual(check(snakes(table)), check(table))

    def test_snake_case_is_ignored_alike(self) -> None:
        """What is ignored is named, with underscores also."""
        table = self.table({"storage-proxy.event-loop": "uvloop"})
        table["storage_proxy"] = table.pop("storage-proxy")
        self.assertIn("event-loop", " ".join(check(table).ignored).replace("_", "-"))

    def test_later_releases(self) -> None:
        """Keys of later releases are taken, and those known to mean nothing here are named."""
        keys = {
            "storage-proxy.ipc-base-path": "/tmp/x",
            "storage-proxy.aiomonitor-termui-port": 38300,
            "storage-proxy.aiomonitor-webui-port": 39300,
            "storage-proxy.use-watcher": False,
            "storage-proxy.allow-auto-quota-scope-creation": True,
            "storage-proxy.volume-stats": {"observe-interval": 10},
            "api.manager.internal-addr": "127.0.0.1:16023",
            "api.manager.announce-addr": "127.0.0.1:6022",
            "api.manager.announce-internal-addr": "host.docker.internal:6023",
            "pyroscope": {"enabled": False},
            "otel": {"enabled": False},
            "service-discovery": {"type": "redis"},
            "artifact-storages": {},
            "reservoir-client": {},
        }
        self.assertLessEqual(set(keys), set(check(self.table(keys)).ignored))

    def test_unknown_keys(self) -> None:
        """Keys that nobody knows do no harm, in any section."""
        changes = {
            f"{section}.never-heard-of": 5
            for section in (
                "storage-proxy",
                "api",
                "api.client",
                "api.manager",
                "volume.local",
                "debug",
                "logging",
                "etcd",
            )
        }
        check(self.table({**changes, "never-heard-of": {}}))

    def test_no_key_of_ours_in_the_file(self) -> None:
        """What is ours to say cannot be said by the file."""
        values: list[Any] = [5, ["x"], {}]
        for value in values:
            self.assertEqual(self.with_key("ignored", value).ignored, ("etcd",))


class ProblemTests(ConfigurationCase):
    """What is said of a wrong file."""

    def test_required(self) -> None:
        """Each key that has no default is said to be required, when it is missing."""
        for key in (
            "storage-proxy",
            "storage-proxy.node-id",
            "storage-proxy.secret",
            "storage-proxy.session-expire",
            "api",
            "api.client",
            "api.client.service-addr",
            "api.manager",
            "api.manager.service-addr",
            "api.manager.secret",
            "volume",
            "volume.local.backend",
            "volume.local.path",
        ):
            self.assertIn("required", self.assertProblem(key, GONE))

    def test_wrong(self) -> None:
        """Each key with a wrong value is named, in one line."""
        wrong: dict[str, list[Any]] = {
            "storage-proxy": [5, "x", []],
            "storage-proxy.node-id": [5, "", " ", {}],
            "storage-proxy.secret": [5, "", " "],
            "storage-proxy.session-expire": ["1s", "x", -1, True, {}],
            "storage-proxy.num-proc": [0, -1, "x", 1.5, True],
            "storage-proxy.pid-file": [5, {}],
            "storage-proxy.scandir-limit": [-1, "x", 1.5],
            "storage-proxy.max-upload-size": [-1, "x", 1.5, "1s", []],
            "storage-proxy.user": ["no-such-user", 1.5, True, -2, []],
            "storage-proxy.group": ["no-such-group", 1.5, True, -2, []],
            "api": [5, []],
            "api.client": [5, "x"],
            "api.client.service-addr": [5, "", "h:x", "h:-1", "h:65536", {"host": "h"}, ["h"]],
            "api.client.ssl-enabled": ["f", "perhaps", 2],
            "api.client.ssl-cert": ["/no/such/file", 5],
            "api.client.ssl-privkey": ["/no/such/file", 5],
            "api.manager.service-addr": ["h:x", ["h", 1, 2]],
            "api.manager.secret": ["", 5],
            "api.manager.delete-status": [200, 500, "x"],
            "volume.local": [5, "x", []],
            "volume.local.backend": ["", 5, "no-such-backend"],
            "volume.local.path": ["", 5, "/no/such/directory", "a\0b"],
            "volume.local.fsprefix": [5, {}],
            "debug": [5, "x"],
            "debug.enabled": ["perhaps", []],
            "logging": [5],
            "logging.level": ["LOUD", 5, ""],
            "logging.drivers": ["console", ["smoke-signals"], 5],
            "logging.file": [5, "x"],
        }
        for key, values in wrong.items():
            for value in values:
                self.assertProblem(key, value)

    def test_no_volume(self) -> None:
        """A proxy without a volume is none."""
        self.assertProblem("volume", {})

    def test_volume_is_no_table(self) -> None:
        """That a table is wanted is said in words, not in Python's."""
        values: list[Any] = [5, "x", []]
        for value in values:
            self.assertProblem("volume", value)
            self.assertProblem("volume.local.options", value)

    def test_port_only(self) -> None:
        """A port alone is no address, as in the original: the colon is what tells the host."""
        self.assertProblem("api.client.service-addr", "6021")

    def test_file_log_limits(self) -> None:
        """A log file is rotated, and from 1 to 100 old ones are kept, as in the original."""
        wanted = {"path": "/tmp", "filename": "x"}
        for key, value in (("backup-count", 0), ("backup-count", 101), ("backup-count", -1)):
            self.assertProblem("logging.file", {**wanted, key: value}, f"logging.file.{key}")

    def test_absolute_prefix(self) -> None:
        """The prefix of a volume is a relative path, as in the original."""
        self.assertProblem("volume.local.fsprefix", "/absolute")

    def test_inner_names(self) -> None:
        """What is wrong in an inner table is named by its whole way."""
        self.assertProblem("logging.file", {"path": "/tmp"}, "logging.file.filename")
        self.assertProblem("volume.local.options", {"threads": "x"}, "volume.local.options.threads")
        self.assertProblem("volume.local.options", {"threads": 1}, "volume.local.options.threads")
        self.assertProblem("volume.local.options", {"deadline": 0}, "volume.local.options.deadline")

    def test_handover(self) -> None:
        """A handover without a proxy that is trusted, or to no place, is refused."""
        proxies = {"api.client.trusted-proxies": ["10.0.0.1"]}
        for changes in (
            {"volume.local.x-accel-redirect": "/files/"},
            {**proxies, "volume.local.x-accel-redirect": "files/"},
            {**proxies, "volume.local.x-accel-redirect": "/files"},
            {**proxies, "volume.local.x-accel-redirect": "/l\u00f6we/"},
            {**proxies, "volume.local.x-accel-redirect": "/a b/"},
        ):
            [problem] = self.problems(changes)
            self.assertTrue(problem.startswith("volume.local.x-accel-redirect: "), problem)
        for wrong in ("10.0.0.1", ["10.0.0.1/8"], ["example.com"], [1]):
            self.assertProblem("api.client.trusted-proxies", wrong)

    def test_names_of_volumes(self) -> None:
        """The name of a volume is told as it is in the file, underscores also."""
        [problem] = self.problems({"volume.my_volume": {"backend": "vfs"}})
        self.assertTrue(problem.startswith("volume.my_volume.path: "), problem)

    def test_certificate_is_needed(self) -> None:
        """TLS without certificate and key is refused, with a line for each."""
        problems = self.problems({"api.manager.ssl-enabled": True})
        self.assertEqual(
            [problem.partition(":")[0] for problem in problems],
            ["api.manager.ssl-cert", "api.manager.ssl-privkey"],
        )

    def test_file_is_needed(self) -> None:
        """The file driver without a file is refused."""
        self.assertProblem("logging.drivers", ["file"], "logging.file")

    def test_all_at_once(self) -> None:
        """All problems are told at once, a line each."""
        problems = self.problems(
            {
                "storage-proxy.secret": GONE,
                "storage-proxy.session-expire": "1s",
                "api.client.service-addr": "x:y",
                "volume.local.path": GONE,
            }
        )
        self.assertEqual(len(problems), 4)
        problems = self.problems(
            {
                "storage-proxy.num-proc": 0,
                "storage-proxy.scandir-limit": -1,
                "volume.local.path": "/no/such/directory",
                "logging.level": "x",
            }
        )
        self.assertEqual(len(problems), 4)

    @QUICK
    @given(json_values())
    def test_arbitrary(self, table: Any) -> None:
        """Any table at all is a configuration, or complained about."""
        try:
            structure(table, Configuration)
        except Complaint as error:
            self.assertTrue(error.fields)

    @SLOW
    @given(st.data())
    def test_arbitrary_values(self, data: st.DataObject) -> None:
        """So is one that is right but for one value, whatever that is."""
        table = copy.deepcopy(self.table({"logging.file": {"path": "/tmp", "filename": "x"}}))
        here = table
        while True:
            key = data.draw(st.sampled_from(sorted(here)))
            if not isinstance(here[key], dict) or not here[key] or data.draw(st.booleans()):
                break
            here = here[key]
        here[key] = data.draw(json_values())
        try:
            check(table)
        except ConfigurationError as error:
            self.assertTrue(error.problems)
            self.assertEqual(str(error), "\n".join(error.problems))


class HungVolumeTests(ConfigurationCase):
    """Volumes that do not answer while the daemon starts."""

    def setUp(self) -> None:
        """Let everything below /hung hang, until the test is over."""
        super().setUp()
        release = threading.Event()
        before = set(threading.enumerate())
        is_directory = os.path.isdir

        def hanging(path: Any) -> bool:
            if str(path).startswith("/hung"):
                release.wait(30)
            return is_directory(path)

        def finish() -> None:
            release.set()
            for thread in set(threading.enumerate()) - before:
                thread.join(30)

        self.patch(os.path, "isdir", hanging)
        self.addCleanup(finish)

    def test_one(self) -> None:
        """A volume that hangs is left for its requests to find out; the others are as ever."""
        self.patch(config, "MOUNT_PATIENCE", 0.05)
        started = time.monotonic()
        found = check(self.table({"volume.far": {"backend": "vfs", "path": "/hung/up/../mount"}}))
        self.assertLess(time.monotonic() - started, 10)
        self.assertEqual(found.volume["far"].path, "/hung/mount")
        self.assertEqual(found.volume["local"].path, os.path.realpath(self.path))

    def test_others_are_checked(self) -> None:
        """A wrong path is found beside one that hangs."""
        self.patch(config, "MOUNT_PATIENCE", 0.05)
        problems = self.problems(
            {
                "volume.a": {"backend": "vfs", "path": "/hung/mount"},
                "volume.b": {"backend": "vfs", "path": "/no/such/directory"},
            }
        )
        self.assertEqual([problem.partition(":")[0] for problem in problems], ["volume.b.path"])

    def test_many(self) -> None:
        """Many that hang are waited for together, not one after the other."""
        self.patch(config, "MOUNT_PATIENCE", 0.3)
        started = time.monotonic()
        check(
            self.table(
                {
                    f"volume.v{number}": {"backend": "vfs", "path": f"/hung/{number}"}
                    for number in range(20)
                }
            )
        )
        self.assertLess(time.monotonic() - started, 3)


class FileTests(ConfigurationCase):
    """Finding and reading the file."""

    def exists(self, *paths: str) -> None:
        """Let these files be all there are."""
        self.patch(Path, "is_file", lambda path: str(path) in paths)
        patched = mock.patch.dict(os.environ, {"HOME": "/home/somebody"})
        patched.start()
        self.addCleanup(patched.stop)

    def test_search_order(self) -> None:
        """Without a word the file is looked for here, at home, and in /etc, in this order."""
        places = [
            "storage-proxy.toml",
            "/home/somebody/.config/backend.ai/storage-proxy.toml",
            "/etc/backend.ai/storage-proxy.toml",
        ]
        for number in range(3):
            self.exists(*places[number:])
            self.assertEqual(str(find_file({})), places[number])

    def test_environment(self) -> None:
        """BACKEND_CONFIG_FILE comes first; it is not looked for elsewhere when it is missing."""
        self.exists("storage-proxy.toml")
        for path in ("/somewhere/else.toml", "/missing"):
            self.assertEqual(str(find_file({"BACKEND_CONFIG_FILE": path})), path)
        self.assertEqual(str(find_file({"BACKEND_CONFIG_FILE": ""})), "storage-proxy.toml")

    def test_nowhere(self) -> None:
        """When there is none, all places are named, and what else can be done."""
        self.exists()
        [problem] = self.assertRaises(ConfigurationError, find_file, {}).problems
        for word in (
            "--config",
            "--standalone",
            "/home/somebody/.config/backend.ai/",
            "/etc/backend.ai/",
        ):
            self.assertIn(word, problem)

    def write(self, data: bytes) -> Path:
        """Make a configuration file."""
        path = Path(self.mktemp())
        path.write_bytes(data)
        return path

    def test_load(self) -> None:
        """A file is read as TOML."""
        path = self.write(self.minimal.encode())
        self.assertEqual(load(path), check(tomllib.loads(self.minimal)))

    def test_load_problems(self) -> None:
        """Problems name the file and the key."""
        path = self.write(self.minimal.replace("session-expire", "session-expires").encode())
        error = self.assertRaises(ConfigurationError, load, path)
        self.assertEqual(error.problems, [f"{path}: storage-proxy.session-expire: is required"])

    def test_no_toml(self) -> None:
        """What is no TOML, nor even text, is said to be none."""
        for data in (b"[x", b"= 5", b"\xff\xfe", b"\x00"):
            path = self.write(data)
            [problem] = self.assertRaises(ConfigurationError, load, path).problems
            self.assertTrue(problem.startswith(f"{path}: not TOML: "), problem)

    def test_unreadable(self) -> None:
        """A file that cannot be read is said to be so."""
        for path in (Path(self.mktemp()), Path(self.path)):
            [problem] = self.assertRaises(ConfigurationError, load, path).problems
            self.assertTrue(problem.startswith(f"{path}: "), problem)

    def test_sample(self) -> None:
        """The sample that we ship is right, but for the places of its volumes."""
        table = tomllib.loads(SAMPLE.read_text(encoding="utf-8"))
        for volume in table["volume"].values():
            volume["path"] = self.path
        found = check(table)
        self.assertEqual(found.api.client.service_addr[1], 6021)
        self.assertEqual(found.api.manager.service_addr[1], 6022)


class StandaloneTests(SynchronousTestCase):
    """The embedded default."""

    def test_first(self) -> None:
        """The first start makes the volume, and secrets for their owner alone."""
        old = os.umask(0)
        self.addCleanup(os.umask, old)
        directory = Path(self.mktemp()) / "new" / "deep"
        found = standalone(directory)
        self.assertEqual(found.api.client.service_addr, ("127.0.0.1", 6021))
        self.assertEqual(found.api.manager.service_addr, ("127.0.0.1", 6022))
        self.assertEqual(list(found.volume), ["local"])
        self.assertEqual(found.volume["local"].backend, "vfs")
        self.assertEqual(found.volume["local"].path, os.path.realpath(directory / "local"))
        for name, secret in (
            ("manager-secret", found.api.manager.secret),
            ("token-secret", found.storage_proxy.secret),
        ):
            self.assertEqual(stat.S_IMODE((directory / name).stat().st_mode), 0o600)
            self.assertEqual((directory / name).read_text().strip(), secret)
            self.assertGreaterEqual(len(secret), 32)
        self.assertNotEqual(found.api.manager.secret, found.storage_proxy.secret)

    def test_again(self) -> None:
        """The next start uses what the first has made, in every way."""
        directory = Path(self.mktemp())
        self.assertEqual(standalone(directory), standalone(directory))

    def test_different(self) -> None:
        """Another directory has other secrets."""
        one, other = standalone(Path(self.mktemp())), standalone(Path(self.mktemp()))
        self.assertNotEqual(one.api.manager.secret, other.api.manager.secret)
        self.assertNotEqual(one.storage_proxy.secret, other.storage_proxy.secret)

    def test_own_secrets(self) -> None:
        """Secrets that were put there by hand are used."""
        directory = Path(self.mktemp())
        directory.mkdir()
        (directory / "manager-secret").write_text("mine\n")
        self.assertEqual(standalone(directory).api.manager.secret, "mine")

    def test_relative(self) -> None:
        """The volume's path is absolute, as the daemon may change its directory."""
        directory = Path(os.path.relpath(self.mktemp()))
        self.assertTrue(os.path.isabs(standalone(directory).volume["local"].path))

    def test_impossible(self) -> None:
        """A directory that cannot be made is a problem of one line."""
        file = Path(self.mktemp())
        file.touch()
        for directory in (file, file / "below"):
            [problem] = self.assertRaises(ConfigurationError, standalone, directory).problems
            self.assertIn(f"--standalone {directory}", problem)

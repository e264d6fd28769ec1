"""
Tests for :mod:`storageproxy.tap` and the plugin that makes ``twistd storage-proxy`` known.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from io import StringIO
from pathlib import Path

from twisted.application.service import IService, IServiceMaker
from twisted.plugin import getPlugins
from twisted.python import usage
from twisted.trial.unittest import SynchronousTestCase
from zope.interface.verify import verifyObject

import storageproxy
from storageproxy.tap import Options, makeService
from tests.harness import make_certificate

CHECKOUT = Path(storageproxy.__file__).parents[1]


def _toml(root: Path, client: int = 6021, manager: int = 6022, more: str = "") -> str:
    return f"""
[storage-proxy]
node-id = "i-tests"
num-proc = 1
secret = "the-secret-of-the-tokens"
session-expire = "1d"
user = -1
group = -1
[api.client]
service-addr = "127.0.0.1:{client}"
{more}
[api.manager]
service-addr = "127.0.0.1:{manager}"
secret = "the-secret-of-the-manager"
[volume.local]
backend = "vfs"
path = "{root}"
[debug]
[logging]
"""


class TapCase(SynchronousTestCase):
    def setUp(self) -> None:
        self.root = Path(self.mktemp()).absolute()
        self.root.mkdir(parents=True)
        self.stderr = StringIO()
        self.patch(sys, "stderr", self.stderr)
        self.config = self.root / "storage-proxy.toml"
        self.config.write_text(_toml(self.root))

    def parse(self, *arguments: str) -> Options:
        options = Options()
        options.parseOptions(list(arguments))
        return options

    def refused(self, *arguments: str) -> list[str]:
        """The lines with which a command line is refused."""
        error = self.assertRaises(SystemExit, self.parse, *arguments)
        self.assertEqual(error.code, 1)
        return self.stderr.getvalue().splitlines()


class OptionsTests(TapCase):
    def test_config(self) -> None:
        """A configuration can be named, in both spellings."""
        for option in ("--config", "-f"):
            options = self.parse(option, str(self.config))
            self.assertEqual(options.settings.storage_proxy.node_id, "i-tests")
        self.assertFalse(options["debug"])

    def test_environment(self) -> None:
        """The environment can name a configuration, as for the original."""
        self.patch(os, "environ", {**os.environ, "BACKEND_CONFIG_FILE": str(self.config)})
        self.assertEqual(self.parse().settings.storage_proxy.node_id, "i-tests")

    def test_debug(self) -> None:
        """Everything can be logged for once."""
        self.assertTrue(self.parse("--debug", "--config", str(self.config))["debug"])

    def test_standalone(self) -> None:
        """Without a configuration it runs on a directory, with secrets for its owner alone."""
        directory = self.root / "alone"
        settings = self.parse("--standalone", str(directory)).settings
        self.assertEqual(list(settings.volume), ["local"])
        self.assertEqual(settings.api.client.service_addr, ("127.0.0.1", 6021))
        self.assertEqual(settings.api.manager.service_addr, ("127.0.0.1", 6022))
        for name in ("manager-secret", "token-secret"):
            self.assertEqual((directory / name).stat().st_mode & 0o777, 0o600)
        again = self.parse("--standalone", str(directory)).settings
        self.assertEqual(again.api.manager.secret, settings.api.manager.secret)

    def test_both(self) -> None:
        """A configuration and a directory exclude each other, and nothing is made."""
        directory = self.root / "alone"
        lines = self.refused("--config", str(self.config), "--standalone", str(directory))
        self.assertEqual(len(lines), 1)
        self.assertFalse(directory.exists())

    def test_missing(self) -> None:
        """A configuration that is not there is named."""
        [line] = self.refused("--config", str(self.root / "missing.toml"))
        self.assertIn("missing.toml", line)

    def test_no_configuration_anywhere(self) -> None:
        """Who gives no configuration is told what can be given."""
        empty = self.root / "empty"
        empty.mkdir()
        here = os.getcwd()
        os.chdir(empty)
        self.addCleanup(os.chdir, here)
        self.patch(os, "environ", {"HOME": str(empty)})
        if Path("/etc/backend.ai/storage-proxy.toml").exists():
            self.patch(Path, "is_file", lambda path: False)
        [line] = self.refused()
        self.assertIn("--config", line)
        self.assertIn("--standalone", line)

    def test_no_toml(self) -> None:
        """A configuration that cannot be read is one line."""
        self.config.write_text("[storage-proxy\n")
        [line] = self.refused("--config", str(self.config))
        self.assertIn(str(self.config), line)

    def test_problems(self) -> None:
        """Every problem is a line that names file, key and what is allowed."""
        text = self.config.read_text()
        text = text.replace('session-expire = "1d"', 'session-expire = "soon"')
        text = text.replace('backend = "vfs"', 'backend = "magic"')
        text = text.replace('secret = "the-secret-of-the-manager"', "")
        self.config.write_text(text)
        found = self.refused("--config", str(self.config))
        for line in found:
            self.assertTrue(line.startswith(f"{self.config}: "), line)
        told = "\n".join(found)
        self.assertIn("storage-proxy.session-expire: ", told)
        self.assertIn("api.manager.secret: ", told)
        self.assertNotIn("the-secret", told)

    def test_unknown_option(self) -> None:
        """An option that is none is a usage error."""
        self.assertRaises(usage.UsageError, self.parse, "--nonsense")

    def test_version(self) -> None:
        """The version can be asked for."""
        stdout = StringIO()
        self.patch(sys, "stdout", stdout)
        error = self.assertRaises(SystemExit, self.parse, "--version")
        self.assertEqual(error.code, 0)
        self.assertIn(storageproxy.__version__, stdout.getvalue())


class MakeServiceTests(TapCase):
    def test_service(self) -> None:
        """The daemon is made from its options, and nothing of it is started."""
        made = makeService(self.parse("--config", str(self.config)))
        verifyObject(IService, made)
        self.assertFalse(made.running)

    def test_wrong_certificate(self) -> None:
        """A certificate that is none ends the start with one line."""
        certificate, key = make_certificate(self.root)
        certificate.write_text("nonsense")
        more = f'ssl-enabled = true\nssl-cert = "{certificate}"\nssl-privkey = "{key}"'
        self.config.write_text(_toml(self.root, more=more))
        options = self.parse("--config", str(self.config))
        error = self.assertRaises(SystemExit, makeService, options)
        self.assertEqual(error.code, 1)
        [line] = self.stderr.getvalue().splitlines()
        self.assertIn("ssl-cert", line)

    def test_plugin(self) -> None:
        """twistd finds the daemon by its name, without importing it."""
        [found] = [p for p in getPlugins(IServiceMaker) if p.tapname == "storage-proxy"]
        self.assertEqual(found.module, "storageproxy.tap")


class ProcessTests(SynchronousTestCase):
    def test_broken_configuration(self) -> None:
        """twistd ends with status 1 and one line per problem, and nothing ever listens."""
        root = Path(self.mktemp()).absolute()
        root.mkdir(parents=True)
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        broken = root / "broken.toml"
        text = _toml(root, client=port).replace("num-proc = 1", "num-proc = 0")
        broken.write_text(text.replace(f'path = "{root}"', 'path = "/nonexistent"'))
        done = subprocess.run(
            [
                str(Path(sys.executable).with_name("twistd")),
                "-n",
                "--pidfile=",
                "storage-proxy",
                "--config",
                str(broken),
            ],
            cwd=root,
            env={**os.environ, "PYTHONPATH": str(CHECKOUT)},
            capture_output=True,
            text=True,
            timeout=60,
        )
        self.assertEqual(done.returncode, 1, done.stderr)
        lines = done.stderr.splitlines()
        self.assertEqual(len(lines), 2, done.stderr)
        for line, key in zip(
            sorted(lines), ("storage-proxy.num-proc", "volume.local.path"), strict=True
        ):
            self.assertTrue(line.startswith(f"{broken}: {key}: "), line)
        with socket.socket() as probe:
            self.assertNotEqual(probe.connect_ex(("127.0.0.1", port)), 0)

"""
The agent's configuration, its command line, and what is shipped with it.
"""

from __future__ import annotations

import os
import subprocess
import sys
from io import StringIO
from pathlib import Path
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from twisted.application.service import IService, IServiceMaker
from twisted.plugin import getPlugins
from twisted.trial.unittest import SynchronousTestCase
from zope.interface.verify import verifyObject

import storageproxy
from backends.xfs import settings
from backends.xfs.agent import Agent, Once
from backends.xfs.settings import AgentSettings, check, to_range
from backends.xfs.tap import FILE, Options, makeService
from storageproxy.config import ConfigurationError
from tests.strategies import QUICK, json_values, tables

CHECKOUT = Path(storageproxy.__file__).parents[1]


class SettingsTests(SynchronousTestCase):
    def table(self, **more: Any) -> dict[str, Any]:
        return {
            "volumes": ["/tmp"],
            "users": [0],
            "socket": "/tmp/socket",
            **{key.replace("_", "-"): value for key, value in more.items()},
        }

    def problems(self, **more: Any) -> list[str]:
        error = self.assertRaises(ConfigurationError, check, self.table(**more))
        problems: list[str] = error.problems
        return problems

    def test_least(self) -> None:
        """Volumes and users are enough."""
        found = check(self.table())
        self.assertEqual(found.users, [0])
        self.assertEqual((found.projects, found.projid), ("/etc/projects", "/etc/projid"))
        self.assertEqual(to_range(found.ids), range(1_000_000, 4_294_967_295))
        self.assertEqual(found.socket_mode, 0o660)
        self.assertFalse(found.read_all)

    def test_links(self) -> None:
        """Volumes are told as the kernel tells their paths."""
        top = Path(self.mktemp()).absolute()
        (top / "a").mkdir(parents=True)
        (top / "b").symlink_to("a")
        self.assertEqual(
            check(self.table(volumes=[f"{top}/b/", f"{top}/./a"])).volumes,
            [os.path.realpath(top / "a")] * 2,
        )

    def test_problems(self) -> None:
        """Each problem names its key."""
        for key, values in {
            "volumes": [[], ["relative"], ["/a\nb"], "/a", [""]],
            "users": [[], ["no-such-user"], [-1], [""], "root"],
            "socket-mode": [0o1777, -1, "rw"],
            "socket-group": ["no-such-group", -7, ""],
            "socket": ["relative", "/no/such/directory/socket"],
            "projects": ["projects", "/no/such/directory/projects"],
            "projid": [7],
            "ids": [[0, 5], [7], [9, 5], [1, 2**32 - 1], 7, "1-5"],
            "threads": [1, 2000],
            "deadline": [0, "soon"],
            "reconcile-interval": ["never"],
            "read-all": ["perhaps"],
            "logging": [{"level": "LOUD"}, {"drivers": ["paper"]}, 7],
        }.items():
            for value in values:
                [line] = self.problems(**{key: value})
                self.assertIn(key, line)

    def test_required(self) -> None:
        """What cannot be guessed is asked for."""
        error = self.assertRaises(ConfigurationError, check, {})
        self.assertEqual(sorted(error.problems), ["users: is required", "volumes: is required"])

    @QUICK
    @given(
        tables(
            ["volumes", "users", "socket", "socket-mode", "ids", "logging"],
            st.sampled_from([["/tmp"], [0], "/tmp/socket", 0o600, 5, {"level": "info"}]),
        )
        | st.dictionaries(st.text(max_size=8), json_values(), max_size=4)
    )
    def test_anything(self, table: dict[str, Any]) -> None:
        """Whatever the file has in it, it is understood or refused."""
        try:
            self.assertIsInstance(check(table), AgentSettings)
        except ConfigurationError as error:
            self.assertTrue(error.problems)

    def test_sample(self) -> None:
        """The sample is understood, and says what holds without it."""
        text = (CHECKOUT / "etc" / "storage-proxy-xfs-agent.toml").read_text()
        for name in ('"storage-proxy"]', '"storage-proxy"\n'):
            text = text.replace(name, name.replace('"storage-proxy"', "0"))
        text = text.replace(settings.SOCKET, "/tmp/socket")
        path = Path(self.mktemp())
        path.write_text(text)
        found = settings.load(path)
        least = check(self.table(volumes=found.volumes, socket_group=0))
        self.assertEqual(found, least)


class TapTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.root = Path(self.mktemp()).absolute()
        self.root.mkdir(parents=True)
        self.config = self.root / "agent.toml"
        self.config.write_text(
            f'volumes = ["{self.root}"]\nusers = [0]\nsocket = "{self.root}/socket"\n'
        )

    def parse(self, *arguments: str) -> Options:
        options = Options()
        options.parseOptions([*arguments])
        return options

    def test_agent(self) -> None:
        """The agent is made from its options, and nothing of it is started."""
        made = makeService(self.parse("--config", str(self.config)))
        verifyObject(IService, made)
        self.assertIsInstance(made, Agent)
        self.assertFalse(made.running)
        self.assertEqual(os.listdir(self.root), ["agent.toml"])

    def test_reconcile(self) -> None:
        """So is a round of reconciling."""
        made = makeService(self.parse("-f", str(self.config), "--reconcile", "--debug"))
        verifyObject(IService, made)
        self.assertIsInstance(made, Once)

    def test_default(self) -> None:
        """The configuration has a usual place."""
        self.assertEqual(Options()["config"], FILE)

    def test_problems(self) -> None:
        """A configuration that cannot be used ends the process with a line for each problem."""
        stderr = StringIO()
        self.patch(sys, "stderr", stderr)
        self.config.write_text("volumes = []\nusers = []\n")
        error = self.assertRaises(SystemExit, self.parse, "--config", str(self.config))
        self.assertEqual(error.code, 1)
        lines = stderr.getvalue().splitlines()
        self.assertEqual(len(lines), 3, lines)
        for line in lines:
            self.assertTrue(line.startswith(f"{self.config}: "), line)

    def test_plugin(self) -> None:
        """twistd finds the agent by its name, without importing it."""
        [found] = [p for p in getPlugins(IServiceMaker) if p.tapname == "storage-proxy-xfs-agent"]
        self.assertEqual(found.module, "backends.xfs.tap")

    def test_process(self) -> None:
        """twistd runs it, and a round on what is no XFS says so."""
        done = subprocess.run(
            [
                str(Path(sys.executable).with_name("twistd")),
                "-n",
                "--pidfile=",
                "storage-proxy-xfs-agent",
                "--config",
                str(self.config),
                "--reconcile",
            ],
            cwd=self.root,
            env={**os.environ, "PYTHONPATH": str(CHECKOUT)},
            capture_output=True,
            text=True,
            timeout=60,
        )
        self.assertEqual(done.returncode, 1, done.stderr)
        self.assertIn("is not on XFS", done.stdout)

"""
The README's commands, run as they are written.
"""

from __future__ import annotations

import os
import re
import socket
import subprocess
import tempfile
import time
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from tests.functional.daemon import CHECKOUT, START_DEADLINE, TWISTD, select_pause


def blocks(heading: str) -> list[str]:
    """The shell commands below a heading of the README."""
    text = (CHECKOUT / "README.md").read_text(encoding="utf-8")
    section = text.split(f"\n## {heading}\n", 1)[1].split("\n## ", 1)[0]
    return re.findall(r"```sh\n(.*?)```", section, re.DOTALL)


class ReadmeTests(SynchronousTestCase):
    """A newcomer pastes what the README says."""

    def setUp(self) -> None:
        self.directory = Path(self.enterContext(tempfile.TemporaryDirectory()))
        # What "sh .ci/venv" makes is there already: it is what runs this test.
        (self.directory / ".venv").symlink_to(Path(TWISTD).parents[1])
        (command,) = blocks("Run it")
        _, _, start = command.strip().partition(" && ")
        self.log = self.directory / "log"
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                start.split(),
                cwd=self.directory,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                # The installed package, as the newcomer has it.
                env={key: value for key, value in os.environ.items() if key != "PYTHONPATH"},
            )
        self.addCleanup(self.process.wait)
        self.addCleanup(self.process.terminate)
        deadline = time.monotonic() + START_DEADLINE
        for port in (6021, 6022):
            while socket.socket().connect_ex(("127.0.0.1", port)):
                self.assertIsNone(self.process.poll(), self.log.read_text())
                self.assertLess(time.monotonic(), deadline)
                select_pause()

    def run_script(self, script: str) -> subprocess.CompletedProcess[str]:
        """Run commands as a person's shell does, but stop at the first that fails."""
        return subprocess.run(
            ["bash", "-euo", "pipefail", "-c", script],
            cwd=self.directory,
            capture_output=True,
            text=True,
            timeout=120,
        )

    def test_walk(self) -> None:
        """The first upload and download work as written, with curl and tuspy."""
        walk = blocks("A first upload and download")
        self.assertEqual(len(walk), 4)
        result = self.run_script("\n".join(walk))
        self.assertEqual(result.returncode, 0, result.stderr + self.log.read_text())
        self.assertIn("Hello, world\nworld", result.stdout)
        random = (self.directory / "random.bin").read_bytes()
        (uploaded,) = (self.directory / "storage" / "local").rglob("random.bin")
        self.assertEqual(uploaded.read_bytes(), random)

    def test_greeting(self) -> None:
        """What the daemon says at its start, to try an upload, works as well."""
        greeting = self.log.read_text()
        while "-name hello.txt" not in greeting:
            select_pause()
            greeting = self.log.read_text()
        commands = greeting.split("Try an upload:\n", 1)[1].split("-name hello.txt", 1)[0]
        result = self.run_script(commands + "-name hello.txt")
        self.assertEqual(result.returncode, 0, result.stderr)
        path = self.directory / result.stdout.strip().splitlines()[-1]
        self.assertEqual(path.read_text(), "hello\n")

    def test_secrets(self) -> None:
        """The secrets are for their owner alone, and outlive a restart."""
        kept = sorted((self.directory / "storage").glob("*-secret"))
        self.assertEqual([path.name for path in kept], ["manager-secret", "token-secret"])
        for path in kept:
            self.assertEqual(path.stat().st_mode & 0o777, 0o600)
            self.assertGreaterEqual(len(path.read_text().strip()), 32)
        self.assertNotIn(kept[0].read_text().strip(), self.log.read_text())

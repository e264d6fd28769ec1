"""
The daemon in the background, as twistd runs it without ``-n``.
"""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from tests.functional.daemon import CHECKOUT, TWISTD, Daemon, select_pause


class BackgroundTests(SynchronousTestCase):
    """An operator who starts it by hand gets the prompt back."""

    def test_background(self) -> None:
        """It serves, logs to a file, makes folders that sessions can enter, and ends on SIGTERM."""
        root = Path(self.mktemp()).resolve()
        root.mkdir(parents=True)
        daemon = Daemon(root)
        pid_file = root / "twistd.pid"
        subprocess.run(
            [
                *(TWISTD, "--pidfile", str(pid_file)),
                *("storage-proxy", "--config", str(daemon.config)),
            ],
            cwd=root,
            check=True,
            stdin=subprocess.DEVNULL,
            env={**os.environ, "PYTHONPATH": str(CHECKOUT)},
        )
        pid = int(pid_file.read_text())
        self.addCleanup(self.end, pid)
        vfid = daemon.folder()
        self.assertEqual(daemon.path(vfid).stat().st_mode & 0o777, 0o755)
        self.assertIn("has started", (root / "twistd.log").read_text())

    def end(self, pid: int) -> None:
        """Stop it, and wait until it is gone."""
        process = os.pidfd_open(pid)
        signal.pidfd_send_signal(process, signal.SIGTERM)
        while Path(f"/proc/{pid}").exists():
            select_pause()
        os.close(process)

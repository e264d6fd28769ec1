"""
Uploads by real clients through HAProxy, while one of two daemons is killed.

``FAILOVER_RUNS=50 python -m tests.ceph test_failover`` does it fifty times.
"""

from __future__ import annotations

import contextlib
import io
import os
import random
from collections.abc import Callable
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from uuid import uuid4

from tests.ceph.case import CephCase, held
from tests.ceph.clients import upload_by_sdk, upload_by_tuspy
from tests.ceph.proxy import HAProxy
from tests.functional.clients.case import MIB
from tests.functional.daemon import Daemon

RUNS = int(os.environ.get("FAILOVER_RUNS", "8"))
CLIENTS: tuple[Callable[[str, bytes], None], ...] = (upload_by_tuspy, upload_by_sdk) * 2
SMALLEST, LARGEST = 24 * MIB, 40 * MIB


class FailoverTests(CephCase):
    """Four uploads into one folder by two daemons on two mounts."""

    def setUp(self) -> None:
        super().setUp()
        self.daemons = [self.make_daemon_on(0), self.make_daemon_on(1)]
        for daemon in self.daemons:
            daemon.start()
        self.proxy = HAProxy(self.work, self.daemons)
        process = self.proxy.start()
        self.addCleanup(process.wait)
        self.addCleanup(process.kill)
        self.dice = random.Random(20261123)
        self.vfid = self.daemons[0].folder()

    def test_killed(self) -> None:
        """The daemon that has most of them is killed in their midst: none is lost, none mixed."""
        struck = sum(self.run_once(number) for number in range(RUNS))
        print(f"{RUNS} runs, {RUNS * len(CLIENTS)} uploads, {struck} of them under way at the kill")
        self.assertGreaterEqual(struck, RUNS)

    def run_once(self, number: int) -> int:
        """Upload, kill, and compare; how many uploads the one that was killed had."""
        contents = [self.dice.randbytes(self.dice.randint(SMALLEST, LARGEST)) for _ in CLIENTS]
        names = [f"{number}-{client.__name__}-{uuid4().hex}" for client in CLIENTS]
        urls = [
            self.proxy.url(self.daemons[number % 2].upload_url(self.vfid, name, len(content)))
            for name, content in zip(names, contents, strict=True)
        ]
        said = io.StringIO()
        with (
            contextlib.redirect_stdout(said),
            contextlib.redirect_stderr(said),
            ThreadPoolExecutor() as threads,
        ):
            uploads = [
                threads.submit(client, url, content)
                for client, url, content in zip(CLIENTS, urls, contents, strict=True)
            ]
            victim, struck = self.kill(uploads, self.dice.randint(1, SMALLEST // 2))
            for upload in uploads:
                upload.result()
        victim.start()
        for daemon in self.daemons:
            for name, content in zip(names, contents, strict=True):
                path = daemon.path(self.vfid) / name
                self.assertEqual(path.stat().st_size, len(content), said.getvalue())
                self.assertTrue(path.read_bytes() == content, f"run {number}: {name} is mixed")
            left = daemon.path(self.vfid) / ".upload"
            self.assertFalse(left.exists() and list(left.iterdir()))
        for name in names:
            (self.daemons[0].path(self.vfid) / name).unlink()
        return struck

    def kill(self, uploads: list[Future[None]], size: int) -> tuple[Daemon, int]:
        """Kill a daemon when an upload at it has come this far; it, and how many it had."""
        while not any(upload.done() for upload in uploads):
            for daemon in self.daemons:
                sizes = held(daemon)
                if any(found >= size for found in sizes):
                    daemon.kill()
                    return daemon, len(sizes)
            wait(uploads, 0.002, FIRST_COMPLETED)
        raise AssertionError(f"an upload ended too early: {uploads}")

"""
The benchmark runs, and its clients notice what is wrong.
"""

from __future__ import annotations

import json
import os
import signal
import socketserver
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

from twisted.trial.unittest import TestCase

from tests.functional.daemon import CHECKOUT

BENCHMARKS = CHECKOUT / "benchmarks"

#: Runs a load and says what came of it. The modules of the benchmark are scripts beside each other.
LOAD = """
import json, sys
import clients
port = int(sys.argv[1])
wanted = clients.request(port, "GET", "/", least=5)
load = clients.run(2, [clients.single(wanted, wanted) for _ in range(4)])
print(json.dumps([load.done, load.received, len(load.errors)]))
"""

#: Is late for a beat, and says how late.
HEART = """
import pathlib, sys, time
import heartbeat
path = pathlib.Path(sys.argv[1])
heart = heartbeat.Heart(path)
time.sleep(0.1)  # fault: to be late
heart.beat()
late = heartbeat.Record(path).read()
heartbeat.Record(path).reset()
print(late.late >= 0.09, late.blocked + late.starved >= 0.09, heart._record.read().late)
"""


def run(*arguments: str) -> subprocess.Popen[str]:
    """The benchmark."""
    return subprocess.Popen(
        [sys.executable, str(BENCHMARKS / "run.py"), *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def said(program: str, *arguments: str) -> str:
    """What a program says that uses the modules of the benchmark."""
    done = subprocess.run(
        [sys.executable, "-c", program, *arguments],
        cwd=BENCHMARKS,
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.strip()


def rows(table: str) -> dict[str, list[str]]:
    """The rows of a Markdown table by their first cells, with the other cells."""
    found = {}
    for line in table.splitlines():
        if line.startswith("| "):
            first, *others = (cell.strip() for cell in line.strip("|").split(" |"))
            found[first] = others
    return found


def processes(directory: str) -> Iterator[str]:
    """The command lines of processes that have something to do with a directory."""
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal() and int(entry.name) != os.getpid():
            try:
                line = (entry / "cmdline").read_text()
            except OSError:
                continue
            if directory in line:
                yield line


class RunTests(TestCase):
    """``python benchmarks/run.py``."""

    def setUp(self) -> None:
        temporary = TemporaryDirectory()
        self.addCleanup(temporary.cleanup)
        self.directory = Path(temporary.name) / "data"
        self.cache = Path(temporary.name) / "cache"
        self.options = ("--quick", f"--directory={self.directory}", f"--cache={self.cache}")

    def assert_cleared(self) -> None:
        """Nothing of a run is left, on disk or running."""
        self.assertEqual(list(self.directory.iterdir()), [])
        self.assertEqual(list(processes(str(self.directory))), [])

    def test_quick(self) -> None:
        """A quick run measures every scenario without an error, and leaves nothing behind."""
        names = [line.split()[0] for line in run("--list").communicate()[0].splitlines()]
        self.assertIn("download-8", names)
        process = run(*self.options)
        report, progress = process.communicate()
        self.assertEqual(process.returncode, 0, progress)
        _, speeds, costs = report.split("\n## ")
        measured, spent = rows(speeds), rows(costs)
        for name in names:
            ours = measured[name][1]
            if ours.startswith("not measured"):
                # Not every machine lets us mount a file system.
                self.assertEqual(name, "reflink", ours)
                continue
            self.assertRegex(ours, r"^[0-9.,]+ (MB/s|/s|s|ms)$")
            self.assertNotEqual(ours.split()[0], "0", name)
            self.assertEqual(spent[name][3], "0", f"errors of {name}: {progress}")
            self.assertNotEqual(spent[name][4], "not known", name)
        self.assertIn("nginx/", report)
        self.assertNotIn(" errors", speeds)
        self.assertRegex(measured["download-1"][2], r"×")
        self.assertEqual(measured["list"][4], "not here")
        self.assert_cleared()

    def test_terminated(self) -> None:
        """A run that is ended in the middle leaves nothing behind either."""
        process = run(*self.options, "--only=reflink,list,tree-clone")
        assert process.stdout is not None and process.stderr is not None
        for line in process.stderr:
            if "preparing list" in line:
                break
        self.assertNotEqual(list(processes(str(self.directory))), [])
        process.send_signal(signal.SIGTERM)
        process.communicate()
        self.assertEqual(process.returncode, 143)
        self.assert_cleared()
        self.assertNotIn(str(self.directory), Path("/proc/mounts").read_text())

    def test_unknown(self) -> None:
        """A scenario that is not there is named."""
        process = run("--only=list,nonsense")
        self.assertIn("no such scenario: nonsense", process.communicate()[1])
        self.assertEqual(process.returncode, 1)


class ClientTests(TestCase):
    """What the clients of the benchmark count as an error."""

    def load(self, answer: bytes) -> list[int]:
        """Conversations that were done, bytes and errors, with a server of one answer."""

        class Handler(socketserver.StreamRequestHandler):
            def handle(self) -> None:
                while self.rfile.readline():
                    while self.rfile.readline().strip():
                        pass
                    self.wfile.write(answer)
                    if b"close" in answer:
                        return

        class Server(socketserver.ThreadingTCPServer):
            daemon_threads = True

        with Server(("127.0.0.1", 0), Handler) as server:
            thread = threading.Thread(target=server.serve_forever)
            thread.start()
            try:
                found = json.loads(said(LOAD, str(server.server_address[1])))
            finally:
                server.shutdown()
                thread.join()
        assert isinstance(found, list)
        return found

    def test_good(self) -> None:
        """Answers with a length, in chunks, and until the end of the connection are taken."""
        for answer in (
            b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello",
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
            b"2\r\nhe\r\n3\r\nllo\r\n0\r\n\r\n",
            b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\nhello",
        ):
            self.assertEqual(self.load(answer), [4, 40, 0], answer)

    def test_bad(self) -> None:
        """Errors, short bodies and what cannot be understood are counted, once a conversation."""
        for answer in (
            b"HTTP/1.1 500 No\r\nContent-Length: 5\r\n\r\nhello",
            b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nhell",
            b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 6\r\n\r\nhello",
            b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nhello",
            b"HTTP/1.1 nonsense\r\n\r\n",
        ):
            done, _, errors = self.load(answer)
            self.assertEqual((done, errors), (0, 4), answer)


class HeartbeatTests(TestCase):
    """The heartbeat of the reactor."""

    def test_late(self) -> None:
        """A late beat is recorded, as blocked or as waiting for a CPU, until it is reset."""
        with TemporaryDirectory() as directory:
            self.assertEqual(said(HEART, f"{directory}/heart"), "True True 0.0")

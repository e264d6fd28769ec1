"""
Several processes on the same ports: they are killed, asked to end, replaced, and leave nobody else
without an answer.
"""

from __future__ import annotations

import hashlib
import http.client
import json
import os
import select
import shutil
import signal
import socket
import ssl
import subprocess
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from twisted.trial.unittest import SynchronousTestCase

from tests.functional import daemon as functional_daemon
from tests.functional.clients.case import MIB, noise
from tests.functional.daemon import AUTH, CHECKOUT, MANAGER_SECRET, TWISTD, Daemon, select_pause
from tests.functional.test_tls import make_certificate

TIMEOUT = 60.0
#: More than sockets hold, so that a transfer of it lasts until its client reads on.
BIG = 64 * MIB


def children(pid: int) -> list[int]:
    """The processes that a process has started, oldest first."""
    path = Path(f"/proc/{pid}/task/{pid}/children")
    return [int(child) for child in path.read_text().split()]


def command(pid: int) -> str:
    """What a process runs; "" once it has ended."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ")
    except (FileNotFoundError, ProcessLookupError):
        return ""


def holder(connection: socket.socket, pids: list[int]) -> int | None:
    """Which of some processes is at the other end of a connection; None while nobody is."""
    ours, theirs = connection.getsockname()[1], connection.getpeername()[1]
    inodes = set()
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        fields = line.split()
        local, remote = (int(address.rpartition(":")[2], 16) for address in fields[1:3])
        if (local, remote) == (theirs, ours):
            inodes.add(f"socket:[{fields[9]}]")
    for pid in pids:
        for link in Path(f"/proc/{pid}/fd").iterdir():
            try:
                if os.readlink(link) in inodes:
                    return pid
            except FileNotFoundError:
                continue
    return None


class WorkersCase(SynchronousTestCase):
    """A daemon of its own with two workers."""

    def setUp(self) -> None:
        # Where an ordinary user can get to.
        self.root = Path(tempfile.mkdtemp()).resolve()
        self.root.chmod(0o755)
        self.addCleanup(shutil.rmtree, self.root, ignore_errors=True)
        self.daemon = self.make()
        self.addCleanup(self.end)
        self.daemon.start()
        self.prepare()

    def make(self) -> Daemon:
        """The daemon, not yet started."""
        return Daemon(self.root, processes=2)

    def prepare(self) -> None:
        """Wait until all serve, and have a folder."""
        self.until(lambda: self.records("has started"))
        self.vfid = self.daemon.folder()
        self.folder = self.daemon.path(self.vfid)

    def end(self) -> None:
        """Stop the daemon, when the test has not."""
        if self.daemon.process is not None and self.daemon.process.poll() is None:
            self.daemon.stop()

    @property
    def parent(self) -> int:
        """The process that an operator knows."""
        assert self.daemon.process is not None
        return self.daemon.process.pid

    @property
    def workers(self) -> list[int]:
        """The processes that serve."""
        return [pid for pid in children(self.parent) if "storageproxy.worker" in command(pid)]

    def until(self, condition: Any) -> Any:
        """Wait for something to become true, and return what it says."""
        for _ in range(int(TIMEOUT / 0.05)):
            if found := condition():
                return found
            select_pause()
        raise AssertionError(f"never: {condition}\n{self.daemon.log.read_text()}")

    def records(self, message: str = "") -> list[dict[str, Any]]:
        """Lines of the log; of each is asserted that it is one."""
        lines = self.daemon.log.read_text().splitlines()
        return [record for record in map(json.loads, lines) if message in record["message"]]

    def connect(self) -> http.client.HTTPConnection:
        """A connection to the clients' port, with small buffers on this side."""
        connection = http.client.HTTPConnection(
            "127.0.0.1", self.daemon.client_port, timeout=TIMEOUT
        )
        connection.connect()
        connection.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 64 * 1024)
        self.addCleanup(connection.close)
        return connection

    def one_each(self) -> dict[int, http.client.HTTPConnection]:
        """A connection to each worker: process to connection."""
        found: dict[int, http.client.HTTPConnection] = {}

        def try_one() -> bool:
            connection = self.connect()
            connection.request("GET", "/")
            connection.getresponse().read()
            pid = holder(connection.sock, self.workers)
            assert pid is not None
            if found.setdefault(pid, connection) is not connection:
                connection.close()
            return len(found) == 2

        self.until(try_one)
        return found

    def target(self, url: str) -> str:
        """Path and query of a URL."""
        parts = urlsplit(url)
        return f"{parts.path}?{parts.query}"

    def big_file(self) -> bytes:
        """Make a file that takes a while."""
        (self.folder / "big").write_bytes(noise(BIG))
        return noise(BIG)

    def begin_download(self, connection: http.client.HTTPConnection) -> http.client.HTTPResponse:
        """Ask for the big file, and read a little of it."""
        connection.request("GET", self.target(self.daemon.download_url(self.vfid, "big")))
        answer = connection.getresponse()
        self.assertEqual(answer.status, 200)
        self.assertEqual(answer.read(MIB), noise(BIG)[:MIB])
        return answer

    def begin_upload(self, connection: http.client.HTTPConnection, url: str, count: int) -> None:
        """Send a part of a big file, and see some of it arrive."""
        connection.putrequest("PATCH", self.target(url))
        for name, value in (("Upload-Offset", "0"), ("Content-Length", str(BIG))):
            connection.putheader(name, value)
        connection.endheaders()
        connection.send(noise(BIG)[:count])
        staging = self.folder / ".upload"
        self.until(lambda: any(path.stat().st_size for path in staging.iterdir()))

    def offset(self, url: str) -> int:
        """What a HEAD says."""
        connection = self.connect()
        connection.request("HEAD", self.target(url), headers={"Tus-Resumable": "1.0.0"})
        answer = connection.getresponse()
        answer.read()
        self.assertEqual(answer.status, 200)
        return int(answer.headers["Upload-Offset"])

    def finish_upload(self, url: str, offset: int) -> None:
        """Send the rest over a new connection."""
        connection = self.connect()
        headers = {"Tus-Resumable": "1.0.0", "Upload-Offset": str(offset)}
        headers["Content-Type"] = "application/offset+octet-stream"
        connection.request("PATCH", self.target(url), noise(BIG)[offset:], headers)
        answer = connection.getresponse()
        answer.read()
        self.assertEqual(answer.status, 204)

    @contextmanager
    def gone(self, *pids: int) -> Iterator[None]:
        """Some processes end in the block, or soon after it."""
        descriptors = [os.pidfd_open(pid) for pid in pids]
        try:
            yield
            for descriptor in descriptors:
                readable, _, _ = select.select([descriptor], [], [], TIMEOUT)
                self.assertEqual(readable, [descriptor])
        finally:
            for descriptor in descriptors:
                os.close(descriptor)


class ServeTests(WorkersCase):
    """Both serve."""

    def test_both(self) -> None:
        """Connections go to both, and the log says who has answered."""
        found = self.one_each()
        self.assertEqual(sorted(found), sorted(self.workers))
        for connection in found.values():
            connection.request("GET", "/")
            self.assertEqual(connection.getresponse().read()[:1], b"{")
        self.until(lambda: {record.get("worker") for record in self.records("GET / ")} == {0, 1})
        self.assertEqual(len(self.records("has started")), 1)
        self.assertEqual({record.get("worker") for record in self.records("serves")}, {0, 1})

    def test_spread(self) -> None:
        """Of connections that come at once, each gets its share, as long as it is there to ask."""
        pids = self.workers
        shared = 0
        for _ in range(9):
            connections = [self.connect() for _ in range(8)]
            holders = [self.until(partial(holder, one.sock, pids)) for one in connections]
            shared += all(holders.count(pid) >= 2 for pid in pids)
            for connection in connections:
                connection.close()
        self.assertGreaterEqual(shared, 5)

    def test_one_session_on_both(self) -> None:
        """An upload that was begun on one goes on at the other."""
        url = self.daemon.upload_url(self.vfid, "up", 2 * MIB)
        data = noise(2 * MIB)
        for number, connection in enumerate(self.one_each().values()):
            part = data[number * MIB : (number + 1) * MIB]
            connection.request(
                "PATCH", self.target(url), part, {"Upload-Offset": str(number * MIB)}
            )
            answer = connection.getresponse()
            answer.read()
            self.assertEqual(
                (answer.status, answer.headers["Upload-Offset"]), (204, str((number + 1) * MIB))
            )
        self.assertEqual((self.folder / "up").read_bytes(), data)

    def test_trash(self) -> None:
        """Both empty the same trash at once, and neither complains."""
        folders = [self.daemon.folder() for _ in range(6)]
        for vfid in folders:
            for number in range(40):
                below = self.daemon.path(vfid) / f"d{number % 5}" / f"e{number}"
                below.mkdir(parents=True)
                for name in range(10):
                    (below / str(name)).touch()
        managers = []
        while {holder(one.sock, self.workers) for one in managers} != set(self.workers):
            one = http.client.HTTPConnection("127.0.0.1", self.daemon.manager_port)
            one.connect()
            self.addCleanup(one.close)
            self.until(partial(holder, one.sock, self.workers))
            managers.append(one)
        pids = {holder(one.sock, self.workers): one for one in managers}

        def delete(manager: http.client.HTTPConnection, vfids: list[str]) -> None:
            for vfid in vfids:
                body = json.dumps({"volume": "local", "vfid": vfid})
                manager.request("POST", "/folder/delete", body, {AUTH: MANAGER_SECRET})
                manager.getresponse().read()

        threads = [
            threading.Thread(target=delete, args=(manager, folders[number::2]))
            for number, manager in enumerate(pids.values())
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        trash = self.root / "local" / ".storage-proxy" / "trash"
        self.until(lambda: not any(trash.iterdir()))
        self.assertEqual(len(self.records("/folder/delete 204")), 6)
        self.assertEqual(self.daemon.stop(), -signal.SIGTERM)
        self.assertEqual([r for r in self.records() if r["level"] != "info"], [])
        self.assertEqual(self.records("nobody waited"), [])


class KilledTests(WorkersCase):
    """A worker is killed as by a crash."""

    def kill_one(self) -> tuple[http.client.HTTPConnection, http.client.HTTPConnection, int]:
        """Connections to the one that will be killed and to the other, and the former's process."""
        (victim, first), (_, second) = self.one_each().items()
        return first, second, victim

    def replaced(self, victim: int) -> None:
        """There are two again, the log says what has happened, and both serve."""
        self.until(lambda: victim not in self.workers and len(self.workers) == 2)
        self.until(lambda: len(self.records("serves")) == 3)
        [record] = self.records("was killed")
        self.assertIn(f"process {victim}", record["message"])
        self.assertEqual(record["level"], "error")
        numbers = [record["worker"] for record in self.records("serves")]
        self.assertEqual(numbers[2], record["worker"])
        self.one_each()

    def test_downloads(self) -> None:
        """The other's download goes on; a client of the killed one gets the rest elsewhere."""
        data = self.big_file()
        first, second, victim = self.kill_one()
        cut, whole = self.begin_download(first), self.begin_download(second)
        os.kill(victim, signal.SIGKILL)
        self.assertEqual(
            hashlib.sha256(data[:MIB] + whole.read()).digest(), hashlib.sha256(data).digest()
        )
        with self.assertRaises((http.client.IncompleteRead, ConnectionError)):
            cut.read()
        again = self.connect()
        headers = {"Range": f"bytes={MIB}-"}
        again.request(
            "GET", self.target(self.daemon.download_url(self.vfid, "big")), headers=headers
        )
        self.assertEqual(again.getresponse().read(), data[MIB:])
        self.replaced(victim)

    def test_uploads(self) -> None:
        """The other's upload goes on; that of the killed one is resumed from the told offset."""
        data = noise(BIG)
        first, second, victim = self.kill_one()
        url = self.daemon.upload_url(self.vfid, "cut", BIG)
        self.begin_upload(first, url, BIG // 2)
        other = self.daemon.upload_url(self.vfid, "whole", BIG)
        self.begin_upload(second, other, BIG // 4)
        os.kill(victim, signal.SIGKILL)
        second.send(data[BIG // 4 :])
        answer = second.getresponse()
        answer.read()
        self.assertEqual(answer.status, 204)
        offset = self.offset(url)
        self.assertLessEqual(offset, BIG // 2)
        self.finish_upload(url, offset)
        for name in ("cut", "whole"):
            self.assertEqual((self.folder / name).read_bytes(), data)
        self.replaced(victim)


class EndTests(WorkersCase):
    """Ends that are asked for."""

    def test_daemon(self) -> None:
        """On SIGTERM no connection is taken any more, and a running download arrives whole."""
        data = self.big_file()
        answers = [self.begin_download(one) for one in self.one_each().values()]
        with self.gone(*self.workers):
            os.kill(self.parent, signal.SIGTERM)
            self.until(self.refused)
            for answer in answers:
                self.assertEqual(data[:MIB] + answer.read(), data)
        assert self.daemon.process is not None
        self.assertEqual(self.daemon.process.wait(TIMEOUT), -signal.SIGTERM)
        self.assertEqual([r for r in self.records() if r["level"] != "info"], [])

    def refused(self) -> bool:
        """Whether nobody listens on the clients' port."""
        try:
            socket.create_connection(("127.0.0.1", self.daemon.client_port)).close()
        except ConnectionRefusedError:
            return True
        except ConnectionResetError:
            return False
        return False

    def test_uploads(self) -> None:
        """What has come of an upload stays, also on two workers."""
        urls = {}
        for name, connection in zip("ab", self.one_each().values(), strict=True):
            urls[name] = self.daemon.upload_url(self.vfid, name, BIG)
            self.begin_upload(connection, urls[name], BIG // 4)
        self.daemon.stop()
        self.daemon.start()
        for name, url in urls.items():
            offset = self.offset(url)
            self.assertTrue(0 < offset <= BIG // 4)
            self.finish_upload(url, offset)
            self.assertEqual((self.folder / name).read_bytes(), noise(BIG))

    def test_worker(self) -> None:
        """On a SIGTERM of its own a worker ends what it is at, and another takes its place."""
        data = self.big_file()
        (pid, connection), _ = self.one_each().items()
        answer = self.begin_download(connection)
        with self.gone(pid):
            os.kill(pid, signal.SIGTERM)
            self.until(lambda: self.records("requests to end"))
            self.assertEqual(data[:MIB] + answer.read(), data)
        self.until(lambda: len(self.records("serves")) == 3)
        self.one_each()
        self.assertEqual([r for r in self.records() if r["level"] != "info"], [])

    def test_parent_killed(self) -> None:
        """When the parent is killed, its workers end what they are at, and are gone."""
        data = self.big_file()
        found = self.one_each()
        answers = [self.begin_download(one) for one in found.values()]
        with self.gone(*found):
            self.daemon.kill()
            self.until(self.refused)
            for answer in answers:
                self.assertEqual(data[:MIB] + answer.read(), data)

    def test_all_at_once(self) -> None:
        """
        A signal to all processes, as Ctrl-C at a terminal or systemd send it, is one end: nothing
        is started again, and nothing goes wrong.
        """
        for number in (signal.SIGINT, signal.SIGTERM):
            before = len(self.records())
            pids = self.workers
            self.assertEqual(len(pids), 2)
            with self.gone(*pids):
                for pid in (self.parent, *pids):
                    os.kill(pid, number)
                assert self.daemon.process is not None
                self.assertEqual(self.daemon.process.wait(TIMEOUT), -number)
            said = self.records()[before:]
            self.assertEqual([r for r in said if r["level"] != "info"], [])
            self.assertEqual([r for r in said if "serves" in r["message"]], [])
            self.daemon.start()
            self.until(lambda b=before: len(self.records("has started")) > bool(b))
            self.until(lambda: len(self.workers) == 2)


class TLSTests(WorkersCase):
    """TLS and an ordinary user, from files that only root may read."""

    def make(self) -> Daemon:
        """A daemon that becomes nobody."""
        self.chain, self.key = make_certificate(self.root)
        daemon = Daemon(self.root, tls=(self.chain, self.key), processes=2)
        text = daemon.config.read_text()
        daemon.config.write_text(
            text.replace("user = -1\n", "user = 54321\n").replace("group = -1\n", "group = 54322\n")
        )
        for path in (daemon.config, self.key):
            path.chmod(0o600)
        for path in daemon.volumes.values():
            path.chmod(0o777)
        # The Python of the tests may be where only root gets to; the daemon's user may read it.
        wrapper = self.root / "twistd"
        wrapper.write_text(
            "#!/bin/sh\nexec setpriv --securebits +no_setuid_fixup --inh-caps +dac_read_search"
            f' --ambient-caps +dac_read_search {TWISTD} "$@"\n'
        )
        wrapper.chmod(0o755)
        self.patch(functional_daemon, "TWISTD", str(wrapper))
        return daemon

    def ask(self) -> int | None:
        """Ask for something, and return who has answered."""
        trusted = ssl.create_default_context(cafile=str(self.chain))
        with socket.create_connection(("127.0.0.1", self.daemon.client_port)) as plain:
            with trusted.wrap_socket(plain, server_hostname="127.0.0.1") as connection:
                connection.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
                self.assertTrue(connection.recv(100).startswith(b"HTTP/1.1 200 "))
                return holder(connection, self.workers)

    def test_files_of_root(self) -> None:
        """Workers need no file again, nor does one that is started later on."""
        self.daemon.config.write_text("nonsense")
        self.key.unlink()
        for count in (2, 3):
            self.until(lambda count=count: len(self.records("serves")) == count)
            pids = set(self.workers)
            self.until(lambda pids=pids: pids.discard(self.ask()) or not pids)
            for pid in (self.parent, *self.workers):
                status = Path(f"/proc/{pid}/status").read_text()
                self.assertIn("\nUid:\t54321\t54321\t54321\t54321\n", status)
                self.assertIn("\nGroups:\t54322 \n", status)
            if count == 2:
                os.kill(self.workers[0], signal.SIGKILL)
        self.assertTrue(self.daemon.manager("GET", "/volumes"))


class LogFileTests(WorkersCase):
    """The log in a file that is put aside when it is full."""

    def make(self) -> Daemon:
        """A daemon whose log is in small files."""
        daemon = Daemon(self.root, processes=2)
        logging = (
            '[logging]\ndrivers = ["console", "file"]\n[logging.file]\n'
            f'path = "{self.root}/logs"\nfilename = "proxy.log"\n'
            'backup-count = 100\nrotation-size = "20k"\n'
        )
        text = daemon.config.read_text()
        daemon.config.write_text(text.replace("[logging]\n", logging))
        return daemon

    def test_rotation(self) -> None:
        """Every request of many is one whole line, of which none is lost, mixed or doubled."""

        def ask() -> None:
            connection = self.connect()
            for _ in range(200):
                connection.request("GET", "/")
                connection.getresponse().read()

        threads = [threading.Thread(target=ask) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        self.daemon.stop()
        files = list((self.root / "logs").iterdir())
        self.assertGreater(len(files), 10)
        lines = [line for file in files for line in file.read_text().splitlines()]
        records = [json.loads(line) for line in lines]
        ids = [record["request_id"] for record in records if record.get("route") == "/"]
        self.assertEqual(len(ids), 1600)
        self.assertEqual(len(set(ids)), 1600)
        self.assertEqual({r["worker"] for r in records if r.get("route") == "/"}, {0, 1})
        self.assertEqual(
            sorted(lines), sorted(self.daemon.log.read_text().splitlines()[-len(lines) :])
        )


class FailTests(SynchronousTestCase):
    """Workers that cannot begin."""

    def test_never(self) -> None:
        """When none can serve the daemon ends with status 1, and says why."""
        root = Path(self.mktemp()).resolve()
        (root / "twisted" / "plugins").mkdir(parents=True)
        (root / "twisted" / "plugins" / "of_the_tests.py").write_text(
            "from storageproxy.plugin import Backend\n"
            'broken = Backend("broken", "of_the_tests_broken.Broken")\n'
        )
        (root / "of_the_tests_broken.py").write_text(
            "class Broken:\n"
            "    def check(self, name, settings):\n        return []\n"
            "    def volume(self, name, settings, reactor):\n"
            '        raise RuntimeError("the licence has expired")\n'
        )
        daemon = Daemon(root, processes=2)
        daemon.config.write_text(
            daemon.config.read_text().replace('backend = "vfs"', 'backend = "broken"')
        )
        done = subprocess.run(
            [TWISTD, "-n", "--pidfile=", "storage-proxy", "--config", str(daemon.config)],
            cwd=root,
            env={**os.environ, "PYTHONPATH": f"{CHECKOUT}:{root}"},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=TIMEOUT,
        )
        self.assertEqual(done.returncode, 1, done.stdout + done.stderr)
        records = [json.loads(line) for line in done.stdout.splitlines()]
        [critical] = [r for r in records if r["level"] == "critical" and "worker" not in r]
        self.assertIn("No worker could begin to serve", critical["message"])
        self.assertIn("the licence has expired", done.stdout)


class BackgroundTests(WorkersCase):
    """The daemon in the background, with twistd's own log and another directory to run in."""

    def setUp(self) -> None:
        self.root = Path(tempfile.mkdtemp()).resolve()
        self.addCleanup(shutil.rmtree, self.root, ignore_errors=True)
        (self.root / "run").mkdir()
        self.daemon = Daemon(self.root, processes=2)

    def test_background(self) -> None:
        """
        Workers are found from there too, their lines are in twistd's log, and all end together.
        """
        pid_file = self.root / "twistd.pid"
        subprocess.run(
            [
                *(TWISTD, "--pidfile", str(pid_file), "--rundir", "run"),
                *("storage-proxy", "--config", str(self.daemon.config)),
            ],
            cwd=self.root,
            check=True,
            stdin=subprocess.DEVNULL,
            env={**os.environ, "PYTHONPATH": os.path.relpath(CHECKOUT, self.root)},
        )
        pid = int(pid_file.read_text())
        self.addCleanup(self.end_process, pid)
        log = self.root / "twistd.log"
        self.daemon.log = log
        self.until(lambda: "has started" in log.read_text())
        first = children(pid)
        self.assertEqual(len(first), 2)
        with self.gone(pid, *first[1:]):
            os.kill(first[0], signal.SIGKILL)
            self.until(lambda: log.read_text().count(" serves.") == 3)
            for _ in range(20):
                self.daemon.folder()
            self.until(lambda: log.read_text().count("POST /folder/create 204") == 20)
            self.assertRegex(log.read_text(), r"\[worker [01]\] POST /folder/create 204")
            self.assertNotIn("Traceback", log.read_text())
            os.kill(pid, signal.SIGTERM)
        self.assertFalse(pid_file.exists())

    def end_process(self, pid: int) -> None:
        """Stop the daemon, when the test has failed to."""
        if "storage-proxy" in command(pid):
            os.kill(pid, signal.SIGTERM)

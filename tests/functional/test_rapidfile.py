"""
The daemon with the commands of the RapidFile Toolkit on its path.
"""

from __future__ import annotations

import http.client
import json
import os
import re
import signal
import socket
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from tests.engines.flashblade.rapidfile import Behaviour, behave, install, running
from tests.functional.daemon import AUTH, MANAGER_SECRET, Daemon, select_pause

#: Seconds after which something has not come about.
GIVE_UP = 60.0

#: Bytes that a daemon may have in memory while it lists anything.
MEMORY = 100_000_000

#: There is no array: the commands do not need any.
NOWHERE = "https://127.0.0.1:1"


def eventually(holds: Callable[[], object], what: str | Path) -> None:
    """
    Return when something holds.

    :param what: is wrong when it does not; a file says so by what is in it then.
    """
    deadline = time.monotonic() + GIVE_UP
    while not holds():
        if time.monotonic() > deadline:
            raise AssertionError(what if isinstance(what, str) else what.read_text())
        select_pause()


class RapidFileCase(SynchronousTestCase):
    processes = 1

    def setUp(self) -> None:
        place = tempfile.TemporaryDirectory(prefix="rapidfile-")
        self.addCleanup(place.cleanup)
        self.root = Path(place.name).resolve()
        self.bin = self.root / "bin"
        self.bin.mkdir()
        install(self.bin)

    def start(self, ready: str = "RapidFile Toolkit: pls") -> Daemon:
        self.daemon = Daemon(
            self.root,
            settings="scandir-limit = 0",
            backend="purestorage",
            processes=self.processes,
            volume_settings=(
                "[volume.local.options]\n"
                f'purity_endpoint = "{NOWHERE}"\n'
                'purity_api_token = "T-none"\n'
                'purity_fs_name = "none"\n'
            ),
            environ={"PATH": f"{self.bin}:{os.environ['PATH']}"},
        )
        self.daemon.start()
        self.addCleanup(self.end)
        eventually(lambda: self.said(ready) >= self.processes, self.daemon.log)
        self.vfid = self.daemon.folder()
        return self.daemon

    def end(self) -> None:
        assert self.daemon.process is not None
        if self.daemon.process.poll() is None:
            self.daemon.stop()
        eventually(lambda: not running(self.bin), "commands are left")

    def said(self, what: str) -> int:
        return self.daemon.log.read_text().count(what)

    def warnings(self) -> list[str]:
        lines = map(json.loads, self.daemon.log.read_text().splitlines())
        said = [line["message"] for line in lines if line["level"] == "warn"]
        return [line for line in said if NOWHERE not in line]

    def capabilities(self) -> list[str]:
        answer = self.daemon.manager("GET", "/volumes")
        found: list[str] = answer["volumes"][0]["capabilities"]
        return found

    def ask(self) -> http.client.HTTPResponse:
        """Begin to list the folder."""
        connection = http.client.HTTPConnection("127.0.0.1", self.daemon.manager_port, timeout=60)
        self.addCleanup(connection.close)
        self.connection = connection
        connection.request(
            "POST",
            "/folder/file/list",
            json.dumps({"volume": "local", "vfid": self.vfid, "relpath": "."}),
            {AUTH: MANAGER_SECRET, "Content-Type": "application/json"},
        )
        return connection.getresponse()

    def usage(self) -> dict[str, int]:
        params = {"volume": "local", "vfid": self.vfid}
        answer: dict[str, int] = self.daemon.manager("GET", "/folder/usage", params)
        return answer


def pieces(answer: http.client.HTTPResponse) -> Iterator[bytes]:
    while data := answer.read(65536):
        yield data


class RapidFileTests(RapidFileCase):
    def test_daemon(self) -> None:
        """What the commands tell is what managers are told, and the trash is emptied by them."""
        daemon = self.start()
        self.assertEqual(self.capabilities(), ["vfolder", "metric", "fast-scan"])
        folder = daemon.path(self.vfid)
        (folder / "dir").mkdir()
        (folder / "dir" / "file").write_bytes(b"12345")
        (folder / "link").symlink_to("dir/file")
        os.utime(folder / "dir", (0, 1_600_000_000.5))
        items = {item["name"]: item for item in json.load(self.ask())["items"]}
        self.assertEqual(
            {name: item["type"] for name, item in items.items()},
            {"dir": "DIRECTORY", "link": "SYMLINK"},
        )
        self.assertEqual(items["link"]["symlink_target"], "dir/file")
        self.assertEqual(items["dir"]["stat"]["modified"], "2020-09-13T12:26:40.500000+00:00")
        self.assertEqual(items["dir"]["stat"]["mode"], (folder / "dir").stat().st_mode)
        self.assertEqual(self.usage(), {"file_count": 2, "used_bytes": 5 + len("dir/file")})
        daemon.manager("POST", "/folder/delete", {"volume": "local", "vfid": self.vfid})
        trash = daemon.volumes["local"] / ".storage-proxy" / "trash"
        eventually(lambda: not os.listdir(trash), "the trash is not emptied")
        self.assertEqual(self.warnings(), [])

    def test_without(self) -> None:
        """Without the commands there is one warning, and all the rest."""
        for name in os.listdir(self.bin):
            (self.bin / name).unlink()
        daemon = self.start("what these commands of the RapidFile Toolkit would do")
        self.assertEqual(self.capabilities(), ["vfolder", "metric"])
        (daemon.path(self.vfid) / "file").write_bytes(b"12345")
        self.assertEqual([item["name"] for item in json.load(self.ask())["items"]], ["file"])
        self.assertEqual(self.usage(), {"file_count": 1, "used_bytes": 5})
        self.assertEqual(len(self.warnings()), 1)

    def test_million(self) -> None:
        """A million entries are listed, and the daemon never has them in memory."""
        daemon = self.start()
        behave(self.bin, Behaviour(synthetic=1_000_000))
        count = 0
        rest = b""
        for data in pieces(self.ask()):
            *items, rest = (rest + data).split(b'{"name": "')
            count += len(items)
        self.assertEqual(count, 1_000_000)
        self.assertTrue(rest.endswith(b"]}"))
        assert daemon.process is not None
        self.assertLess(peak(daemon.process.pid), MEMORY)

    def test_slow_reader(self) -> None:
        """The command waits for a manager that does not read, and for nobody who is gone."""
        daemon = self.start()
        behave(self.bin, Behaviour(synthetic=10**9))
        answer = self.ask()
        answer.read(1000)
        [command] = running(self.bin)
        eventually(
            lambda: b"pipe_write" in Path(f"/proc/{command}/wchan").read_bytes(),
            "the command goes on",
        )
        assert daemon.process is not None
        self.assertLess(peak(daemon.process.pid), MEMORY)
        self.assertEqual(running(self.bin), [command])
        answer.close()
        self.connection.close()
        eventually(lambda: not running(self.bin), "the command goes on for nobody")

    def test_failure(self) -> None:
        """A listing that fails half-way is broken off: nobody takes a part for the whole."""
        self.start()
        behave(self.bin, Behaviour(synthetic=100_000, complete=50_000, complaint="RPC: Timed out"))
        with self.assertRaises((http.client.IncompleteRead, ConnectionError)):
            for _ in pieces(self.ask()):
                pass
        eventually(lambda: self.said("pls: RPC: Timed out"), self.daemon.log)

    def test_early_failure(self) -> None:
        """One that fails before anything was sent is a problem that names the volume."""
        self.start()
        behave(self.bin, Behaviour(synthetic=9000, complete=2000, complaint="RPC: Timed out"))
        answer = self.ask()
        self.assertEqual(answer.status, 500)
        problem = json.load(answer)
        self.assertIn("volume local: pls: RPC: Timed out", problem["msg"])

    def test_stop(self) -> None:
        """No command is left when the daemon ends, whatever it was doing."""
        for number in (signal.SIGTERM, signal.SIGKILL):
            daemon = self.start()
            behave(self.bin, Behaviour(complete=0, hangs=True))
            with socket.create_connection(("127.0.0.1", daemon.manager_port)) as client:
                body = json.dumps({"volume": "local", "vfid": self.vfid})
                client.sendall(
                    f"GET /folder/used-bytes HTTP/1.1\r\nHost: x\r\n{AUTH}: {MANAGER_SECRET}\r\n"
                    f"Content-Length: {len(body)}\r\n\r\n{body}".encode()
                )
                eventually(lambda: running(self.bin), "no command was begun")
                assert daemon.process is not None
                daemon.process.send_signal(number)
                daemon.process.wait(GIVE_UP)
            eventually(lambda: not running(self.bin), "the command is left")
            daemon.log.unlink()
            behave(self.bin, Behaviour())


class WorkersTests(RapidFileCase):
    processes = 2

    def test_all_know(self) -> None:
        """Each of several processes knows what the commands are good for."""
        self.start()
        for _ in range(20):
            self.assertEqual(self.capabilities(), ["vfolder", "metric", "fast-scan"])


def peak(pid: int) -> int:
    """The most that a process ever had in memory, in bytes (proc_pid_status(5))."""
    found = re.search(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    assert found is not None
    return int(found[1]) * 1024

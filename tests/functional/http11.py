"""
A blocking HTTP/1.1 client that shows what is on the wire, and the ground of the wire tests.
"""

from __future__ import annotations

import atexit
import http.client
import json
import os
import re
import shutil
import socket
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from email.message import Message
from functools import cache
from io import BufferedReader
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import UUID, uuid4

import jwt
from twisted.trial.unittest import SynchronousTestCase

from tests.functional.daemon import AUTH, MANAGER_SECRET, TOKEN_SECRET, Daemon

TIMEOUT = 30.0
PROBLEMS = "https://api.backend.ai/probs/storage/"
WITHOUT_BODY = {204, 304}
SMALL = 'scandir-limit = 3\nmax-upload-size = "1m"'
CHECKOUT = Path(__file__).resolve().parents[2]

Headers = dict[str, str]


@dataclass
class Answer:
    """
    One HTTP answer as it came.

    :ivar interim: the status codes of the 1xx answers before it.
    """

    status: int
    reason: str
    headers: Message
    body: bytes
    interim: list[int]

    def header(self, name: str) -> str | None:
        """The value of a header that occurs at most once, None without it."""
        values = self.headers.get_all(name, [])
        if len(values) > 1:
            raise AssertionError(f"{name} occurs {len(values)} times: {values}")
        return str(values[0]) if values else None

    def words(self, name: str) -> set[str]:
        """The comma-separated words of a header, in lower case."""
        return {word.strip().lower() for word in (self.header(name) or "").split(",")} - {""}

    @property
    def media_type(self) -> str:
        """The media type of the body, without its parameters."""
        return (self.header("Content-Type") or "").partition(";")[0].strip().lower()

    def json(self) -> Any:
        """The body as JSON."""
        return json.loads(self.body)


class Connection:
    """
    One TCP connection to a port of the daemon, kept alive over requests.
    """

    def __init__(self, port: int) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=TIMEOUT)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.reader: BufferedReader = self.socket.makefile("rb")

    def close(self) -> None:
        """Close the connection as a client does that has what it wants."""
        self.reader.close()
        self.socket.close()

    def write(self, data: bytes) -> None:
        """Send bytes as they are; what the other side no longer takes is dropped."""
        try:
            self.socket.sendall(data)
        except (BrokenPipeError, ConnectionResetError):
            pass  # the answer that was sent before the connection closed is what matters

    def send(
        self,
        method: str,
        target: str,
        headers: Headers | None = None,
        body: bytes | None = None,
    ) -> None:
        """Send a request; a body gets its Content-Length, unless the headers frame it."""
        self.write(request_head(method, target, headers, body) + (body or b""))

    def receive(self, method: str = "GET") -> Answer:
        """
        Read the next answer.

        :param method: of the request that it answers: HEAD has no body.
        """
        interim: list[int] = []
        while True:
            line = self.reader.readline().decode("latin-1")
            if not line:
                raise ConnectionError("the connection was closed without an answer")
            version, _, rest = line.strip().partition(" ")
            if not version.startswith("HTTP/1."):
                raise AssertionError(f"no status line: {line!r}")
            code, _, reason = rest.partition(" ")
            status = int(code)
            headers = http.client.parse_headers(self.reader)
            if status >= 200:
                break
            interim.append(status)
        body = b""
        if method != "HEAD" and status not in WITHOUT_BODY:
            body = b"".join(self._body(headers))
        return Answer(status, reason, headers, body, interim)

    def _body(self, headers: Message) -> Iterator[bytes]:
        if "chunked" in str(headers.get("Transfer-Encoding", "")).lower():
            while size := int(self.reader.readline().split(b";")[0], 16):
                yield self._exactly(size)
                self.reader.readline()
            while self.reader.readline().strip():
                pass
        elif "Content-Length" in headers:
            yield self._exactly(int(str(headers["Content-Length"])))
        else:
            yield self.reader.read()

    def _exactly(self, size: int) -> bytes:
        data = self.reader.read(size)
        if len(data) != size:
            raise ConnectionError(f"{len(data)} of {size} bytes came before the end")
        return data

    def request(
        self,
        method: str,
        target: str,
        headers: Headers | None = None,
        body: bytes | None = None,
    ) -> Answer:
        """Send a request and read its answer."""
        self.send(method, target, headers, body)
        return self.receive(method)

    def closed(self) -> bool:
        """Whether the other side closes the connection, whatever it says before."""
        try:
            while self.reader.read1(65536):
                pass
        except ConnectionResetError:
            return True
        except TimeoutError:
            return False
        return True

    def cut(self) -> None:
        """Stop sending in the middle of a request, and wait until the daemon has noticed."""
        self.socket.shutdown(socket.SHUT_WR)
        self.closed()
        self.close()


def request_head(method: str, target: str, headers: Headers | None, body: bytes | None) -> bytes:
    """The request line and the headers, up to the empty line."""
    fields = {"Host": "daemon", **(headers or {})}
    names = {name.lower() for name in fields}
    if body is not None and not names & {"content-length", "transfer-encoding"}:
        fields["Content-Length"] = str(len(body))
    lines = [f"{method} {target} HTTP/1.1", *(f"{n}: {v}" for n, v in fields.items())]
    return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")


def chunked(*parts: bytes) -> bytes:
    """A body in the chunked transfer coding."""
    return b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in (*parts, b""))


def new_daemon(settings: str = "", manager_settings: str = "") -> tuple[Daemon, Callable[[], None]]:
    """A daemon in a new directory, not running yet, and how to get rid of both."""
    paths = [str(CHECKOUT), *os.environ.get("PYTHONPATH", "").split(os.pathsep)]
    os.environ["PYTHONPATH"] = os.pathsep.join(dict.fromkeys(path for path in paths if path))
    root = Path(tempfile.mkdtemp(prefix="storage-proxy-wire-")).resolve()
    daemon = Daemon(root, settings=settings, manager_settings=manager_settings)

    def remove() -> None:
        if daemon.process is not None and daemon.process.poll() is None:
            daemon.kill()
        shutil.rmtree(root, ignore_errors=True)

    return daemon, remove


@cache
def started(settings: str, manager_settings: str) -> Daemon | str:
    """A running daemon with these settings, or why there is none."""
    daemon, remove = new_daemon(settings, manager_settings)
    atexit.register(remove)
    try:
        daemon.start()
    except RuntimeError as error:
        return str(error)
    return daemon


def running_daemon(settings: str = "", manager_settings: str = "") -> Daemon:
    """The daemon with these settings: started when it is first asked for, stopped at the end."""
    daemon = started(settings, manager_settings)
    if isinstance(daemon, str):
        raise RuntimeError(daemon)
    return daemon


def folder_path(volume: Path, vfid: str) -> Path:
    """Where a vfolder lies on disk: layout v3 for a scoped id, v2 for a bare one."""
    scope, _, folder = vfid.rpartition("/")
    digits = UUID(folder).hex
    if scope:
        volume = volume / UUID(scope.partition(":")[2]).hex
    return volume / digits[:2] / digits[2:4] / digits[4:]


class WireTestCase(SynchronousTestCase):
    """
    A test of the daemon by nothing but what goes over its two ports and what lies on its disk.
    """

    settings = ""
    manager_settings = ""

    def setUp(self) -> None:
        """Have a daemon running, and connections that are opened when needed."""
        self.daemon = self.provide()
        self.outside = Path(tempfile.mkdtemp(prefix="outside-", dir=self.daemon.root))
        (self.outside / "secret.txt").write_bytes(b"not yours")
        self._connections: dict[int, Connection] = {}
        self.addCleanup(self._hang_up)

    def provide(self) -> Daemon:
        """The daemon of the test, running."""
        return running_daemon(self.settings, self.manager_settings)

    def _hang_up(self) -> None:
        while self._connections:
            self._connections.popitem()[1].close()

    def connect(self, port: int) -> Connection:
        """A connection of its own, closed when the test ends."""
        connection = Connection(port)
        self.addCleanup(connection.close)
        return connection

    def _request(
        self, port: int, method: str, target: str, headers: Headers, body: bytes | None
    ) -> Answer:
        connection = self._connections.get(port) or Connection(port)
        self._connections[port] = connection
        answer = connection.request(method, target, headers, body)
        if "close" in answer.words("Connection"):
            self._connections.pop(port).close()
        return answer

    def manager(
        self,
        method: str,
        path: str,
        params: Any = None,
        *,
        body: bytes | None = None,
        headers: Headers | None = None,
        secret: str | None = MANAGER_SECRET,
    ) -> Answer:
        """
        Call the manager API.

        :param params: what is sent as JSON, nothing when None.
        :param body: sent instead, as it is.
        """
        fields = {} if secret is None else {AUTH: secret}
        if params is not None:
            body = json.dumps(params).encode()
            fields["Content-Type"] = "application/json"
        fields.update(headers or {})
        return self._request(self.daemon.manager_port, method, path, fields, body)

    def client(
        self,
        method: str,
        target: str,
        headers: Headers | None = None,
        body: bytes | None = None,
    ) -> Answer:
        """Call the client API."""
        return self._request(self.daemon.client_port, method, target, headers or {}, body)

    def alive(self) -> None:
        """Check that the daemon answers."""
        self.assertEqual(self.manager("GET", "/volumes").status, 200)

    def eventually(self, condition: Callable[[], bool]) -> None:
        """Check that something becomes true while the daemon is left to its work."""
        deadline = time.monotonic() + TIMEOUT
        while not condition():
            self.assertLess(time.monotonic(), deadline, "it did not happen in time")
            self.alive()

    def new_id(self) -> str:
        """The id of a vfolder that does not exist."""
        return str(uuid4())

    def path(self, vfid: str, volume: str = "local") -> Path:
        """Where a vfolder lies on disk."""
        return folder_path(self.daemon.volumes[volume], vfid)

    def new_folder(self, volume: str = "local") -> tuple[str, Path]:
        """Make an empty vfolder: its id, and where it lies."""
        vfid = self.new_id()
        answer = self.manager("POST", "/folder/create", {"volume": volume, "vfid": vfid})
        self.assertEqual(answer.status, 204, answer.body)
        return vfid, self.path(vfid, volume)

    def claims(self, op: str, vfid: str, relpath: str, **more: Any) -> dict[str, Any]:
        """What an upstream proxy puts into a token."""
        exp = int(time.time()) + 3600
        return {"op": op, "volume": "local", "vfid": vfid, "relpath": relpath, "exp": exp, **more}

    def sign(self, claims: dict[str, Any], key: str = TOKEN_SECRET, alg: str = "HS256") -> str:
        """A token as an upstream proxy with the same secret makes it."""
        return jwt.encode(claims, key, algorithm=alg)

    def assert_problem(self, answer: Answer, status: int, kind: str | None = None) -> Any:
        """
        Check an error: its status, and a body that every client can read.

        :param kind: the end of the problem type.
        :return: the body.
        """
        self.assertEqual(answer.status, status, answer.body)
        self.assertEqual(answer.media_type, "application/problem+json")
        content = answer.json()
        self.assertIsInstance(content, dict)
        for key in ("type", "title", "msg", "error_code"):
            self.assertIsInstance(content.get(key), str, f"{key}: {content}")
            self.assertNotEqual(content[key], "", key)
        self.assertTrue(content["type"].startswith(PROBLEMS), content["type"])
        self.assertTrue(re.fullmatch(r"[a-z0-9-]+(_[a-z0-9-]+)+", content["error_code"]), content)
        if kind is not None:
            self.assertEqual(content["type"], PROBLEMS + kind)
        return content

    def assert_untouched(self) -> None:
        """Check that nothing was written, moved or removed outside of the vfolder."""
        self.assertEqual([entry.name for entry in self.outside.iterdir()], ["secret.txt"])
        self.assertEqual((self.outside / "secret.txt").read_bytes(), b"not yours")


class BareIds(WireTestCase):
    """vfolders named by a bare UUID, as managers before 23.03.5 do: layout v2."""


class ScopedIds(WireTestCase):
    """vfolders named by a quota scope and an id, as managers since 23.03.5 do: layout v3."""

    def new_id(self) -> str:
        """The id of a vfolder that does not exist."""
        return f"user:{uuid4()}/{uuid4().hex}"


if TYPE_CHECKING:
    Case = WireTestCase
else:
    Case = object


class OnFolder(Case):
    """Something done to a vfolder."""

    def setUp(self) -> None:
        """Have an empty vfolder."""
        super().setUp()
        self.vfid, self.root = self.new_folder()

    def ask(self, method: str, route: str, **params: Any) -> Answer:
        """Call a route for the folder of the test, unless the parameters name another."""
        return self.manager(method, route, {"volume": "local", "vfid": self.vfid, **params})

    def post(self, route: str, **params: Any) -> Answer:
        """POST to a route for the folder of the test."""
        return self.ask("POST", route, **params)

    def done(self, answer: Answer) -> None:
        """Check that something was done without anything to say about it."""
        self.assertEqual((answer.status, answer.body), (204, b""))

    def fault(self, answer: Answer, errno: int | None = None, path: str | None = None) -> Any:
        """Check that the filesystem's refusal is passed on, with its number and the path."""
        content = self.assert_problem(answer, 400)
        self.assertIn("errno", content)
        self.assertIsInstance(content.get("paths"), list)
        for each in content["paths"]:
            self.assertNotIn(str(self.daemon.root), each)
        if errno is not None:
            self.assertEqual(content["errno"], errno)
        if path is not None:
            self.assertIn(path, content["paths"])
        return content

    def escapes(self) -> list[str]:
        """Paths that lead out of the folder, by the parent and by links."""
        (self.root / "inner").mkdir()
        (self.root / "out").symlink_to(self.outside)
        depth = os.path.relpath(self.outside, self.root)
        (self.root / "relative").symlink_to(depth)
        (self.root / "inner" / "hop").symlink_to("../out")
        ways = ("..", "../x", "inner/../../x", depth, "out/x", "out/secret.txt")
        return [*ways, "relative/secret.txt", "inner/hop/secret.txt"]

    def prefix_is_tidy(self) -> bool:
        """Whether the folder is gone, and its prefix unless another folder has it too."""
        parent = self.root.parent
        return not self.root.exists() and (not parent.exists() or bool(os.listdir(parent)))

    def assert_untouched(self) -> None:
        """Check that nothing was written, moved or removed outside of the vfolder."""
        super().assert_untouched()
        if self.root.parent.exists():
            # Folders of other tests may happen to share the prefix; nothing else lies there.
            names = os.listdir(self.root.parent)
            self.assertIn(self.root.name, names)
            for name in names:
                self.assertRegex(name, "^[0-9a-f]{28}$")


def dialects(*cases: type[Any]) -> dict[str, type[WireTestCase]]:
    """Two test cases for each of the given mixins: one for each dialect of vfolder ids."""
    made: dict[str, type[WireTestCase]] = {}
    for case in cases:
        for dialect in (BareIds, ScopedIds):
            name = f"{case.__name__}With{dialect.__name__}"
            body = {"__module__": case.__module__, "__doc__": case.__doc__}
            made[name] = type(name, (case, dialect), body)
    return made

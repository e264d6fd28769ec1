"""
Connections to our own sites, in memory and over real ports, for the tests of everything HTTP.

In memory, a :class:`Wire` is both ends of a connection and remembers what the server does to it,
and :class:`HeldThreads` run a volume's calls at once or, when they are held, one at a time when a
test says so, in the order that it wants.
"""

from __future__ import annotations

import json
import os
import warnings
from collections import deque
from collections.abc import Callable, Coroutine, Iterable, Mapping
from datetime import UTC, datetime, timedelta
from io import BytesIO
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any
from urllib.parse import quote
from uuid import uuid4

import jwt
from attrs import define, frozen
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from twisted.internet import reactor as real_reactor
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.error import ConnectionAborted, ConnectionDone, ConnectionLost
from twisted.internet.ssl import Certificate, trustRootFromCertificates
from twisted.internet.task import Clock
from twisted.internet.testing import EventLoggingObserver, StringTransport
from twisted.logger import globalLogPublisher
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase, TestCase
from twisted.web.client import Agent, BrowserLikePolicyForHTTPS, HTTPConnectionPool, readBody
from twisted.web.http_headers import Headers
from zope.interface import implementer

from backends.vfs import VFSVolume
from storageproxy import config, listeners
from storageproxy.api.client import ClientAPI, allow_origin
from storageproxy.api.handover import Handover
from storageproxy.api.manager import ManagerAPI
from storageproxy.api.routing import Front
from storageproxy.background import Background
from storageproxy.config import Configuration, ListenerSettings
from storageproxy.disposal import MOMENT, Disposal
from storageproxy.errors import VolumeUnavailable
from storageproxy.interfaces import IThreads
from storageproxy.listeners import Listener, open_socket
from storageproxy.threads import Progress, VolumeThreads
from storageproxy.tokens import TokenKey
from storageproxy.transfer.site import StreamingSite
from storageproxy.transfer.uploads import Uploads
from storageproxy.vfolder import VFolderID
from storageproxy.volumes import Volumes

# Twisted's cache of header names has both bytes and str in it, and python -bb minds.
warnings.filterwarnings("ignore", category=BytesWarning, module=r".*http_headers")

MANAGER_SECRET = "the-secret-of-the-manager"
TOKEN_SECRET = "the-secret-of-the-tokens-0123456789abcdef"
AUTH = "X-BackendAI-Storage-Auth-Token"
#: What the time is, in seconds since the epoch, until a test changes it.
NOW = 1_700_000_000.0
LIFETIME = 86400.0
MAX_UPLOAD = 64 * 1024 * 1024
LISTING = 50


# ---- threads


@define(eq=False)
class _Held:
    function: Callable[[], Any]
    deferred: Deferred[Any]
    discard: Callable[[Any], object] | None
    timer: Any = None


@implementer(IThreads)
class HeldThreads:
    """
    A volume's threads that are no threads.

    :param clock: for the deadlines of calls that are held.
    :ivar held: whether calls wait until a test runs them; they are made at once else.
    :ivar calls: those that wait.
    """

    deadline = 15.0
    slow_deadline = 60.0

    def __init__(self, clock: Clock, held: bool = False) -> None:
        self.clock = clock
        self.held = held
        self.calls: list[_Held] = []
        self.stopped = False

    def run(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Deferred[Any]:
        return self.submit(lambda: function(*args, **kwargs), self.deadline, None)

    def submit(
        self,
        function: Callable[[], Any],
        deadline: float | None,
        discard: Callable[[Any], object] | None,
    ) -> Deferred[Any]:
        call = _Held(function, Deferred(lambda _: self._give_up(call, CancelledError())), discard)
        if not self.held:
            self._make(call)
            return call.deferred
        if deadline is not None:
            late = VolumeUnavailable("no answer in time")
            call.timer = self.clock.callLater(deadline, self._give_up, call, late)
        self.calls.append(call)
        return call.deferred

    async def run_long(
        self, function: Callable[[Progress], Any], what: str = "a long operation"
    ) -> Any:
        return await self.submit(lambda: function(Progress()), self.deadline, None)

    def clean_up(self, function: Callable[[], object]) -> None:
        call = _Held(function, Deferred(), None)
        call.deferred.addErrback(lambda _: None)
        if self.held:
            self.calls.append(call)
        else:
            self._make(call)

    def stop(self) -> None:
        self.stopped = True

    def step(self, index: int = 0) -> None:
        """Make one of the calls that wait, and deliver its result."""
        self._make(self.calls.pop(index))
        self.clock.advance(0)

    def step_all(self) -> None:
        """Make all calls that wait, and those that follow from them."""
        while self.calls:
            self.step()

    def fail(self, error: Exception, index: int = 0) -> None:
        """Let one of the calls that wait fail."""
        call = self.calls.pop(index)
        self._finish(call, Failure(error))
        self.clock.advance(0)

    def release(self) -> None:
        """Make the calls that wait, and from now on every call at once."""
        self.held = False
        self.step_all()

    def _make(self, call: _Held) -> None:
        try:
            result = call.function()
        except Exception:
            result = Failure()
        self._finish(call, result)

    def _finish(self, call: _Held, result: Any) -> None:
        if call.timer is not None and call.timer.active():
            call.timer.cancel()
        if not call.deferred.called:
            call.deferred.callback(result)
        elif call.discard is not None and not isinstance(result, Failure):
            call.discard(result)

    def _give_up(self, call: _Held, reason: Exception) -> None:
        # As a call that hangs: its thread still has it.
        if not call.deferred.called:
            call.deferred.errback(Failure(reason))


# ---- answers


@frozen
class Answer:
    """
    An HTTP response.

    :param headers: by their names in lower case; the last value counts.
    """

    status: int
    headers: Mapping[str, str]
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)


def parse_answers(data: bytes, methods: Iterable[str] = ()) -> list[Answer]:
    """
    The responses that a server has written on a connection.

    :param methods: of the requests, in order; GET when there are no more.
    :raises ValueError: when one of them is not complete.
    """
    found = []
    asked = deque(methods)
    while data:
        head, separator, data = data.partition(b"\r\n\r\n")
        if not separator:
            raise ValueError("an answer ends in its headers")
        first, *lines = head.decode("latin-1").split("\r\n")
        status = int(first.split()[1])
        headers = {
            name.strip().lower(): value.strip()
            for name, _, value in (line.partition(":") for line in lines)
        }
        if status < 200:
            found.append(Answer(status, headers, b""))
            continue
        method = asked.popleft() if asked else "GET"
        body = b""
        if method == "HEAD" or status in (204, 304):
            pass
        elif headers.get("transfer-encoding") == "chunked":
            while True:
                size, separator, data = data.partition(b"\r\n")
                if not separator:
                    raise ValueError("an answer ends between its chunks")
                length = int(size, 16)
                body += data[:length]
                if data[length : length + 2] != b"\r\n":
                    raise ValueError("an answer ends in a chunk")
                data = data[length + 2 :]
                if not length:
                    break
        elif "content-length" in headers:
            length = int(headers["content-length"])
            if len(data) < length:
                raise ValueError("an answer ends in its body")
            body, data = data[:length], data[length:]
        else:
            body, data = data, b""
        found.append(Answer(status, headers, body))
    return found


# ---- connections


class Wire(StringTransport):
    """
    A connection in memory, from its client's side, and the transport at its server's.

    What the client sends waits while the server has paused the transport, as in a socket.

    :ivar pauses: how often the server has paused reading.
    :ivar aborted: whether the server has aborted the connection.
    :ivar closed: whether the connection has ended.
    """

    def __init__(self, factory: Any, clock: Clock) -> None:
        super().__init__(lenient=True)
        self.clock = clock
        self.pauses = 0
        self.aborted = False
        self.closed = False
        self._pending: deque[bytes] = deque()
        self._delivering = False
        self.protocol = factory.buildProtocol(None)
        self.protocol.makeConnection(self)

    @property
    def paused(self) -> bool:
        return self.producerState == "paused"

    @property
    def waiting(self) -> int:
        """Bytes that the client has sent and the server not read."""
        return sum(map(len, self._pending))

    def send(self, *pieces: bytes) -> None:
        """Send bytes; each piece arrives on its own."""
        self._pending.extend(pieces)
        self._flow()
        self.clock.advance(0)

    def request(
        self,
        method: str,
        path: str,
        headers: Mapping[str, str] | None = None,
        body: bytes | None = None,
        length: int | None = None,
    ) -> None:
        """Send a request; with a length, its body may come later or in part."""
        self.send(head(method, path, headers, body, length) + (body or b""))

    def answers(self, *methods: str) -> list[Answer]:
        """What the server has answered so far."""
        return parse_answers(self.value(), methods)

    def disconnect(self, reason: Exception | None = None) -> None:
        """The client goes away, or the connection breaks."""
        if self.closed:
            return
        self.closed = True
        self.connected = False
        producer, self.producer = self.producer, None
        if producer is not None:
            producer.stopProducing()
        self.protocol.connectionLost(Failure(reason or ConnectionLost()))
        self.clock.advance(0)

    # ---- the server's side

    def write(self, data: bytes) -> None:
        # As a socket has it: what is written after an abort goes nowhere.
        if not self.aborted and not self.closed:
            super().write(data)

    def writeSequence(self, data: Iterable[bytes]) -> None:
        self.write(b"".join(data))

    def pauseProducing(self) -> None:
        self.pauses += 1
        self.producerState = "paused"

    def resumeProducing(self) -> None:
        self.producerState = "producing"
        self.clock.callLater(0, self._flow)

    def loseConnection(self) -> None:
        self.disconnecting = True
        self._pending.clear()
        self.clock.callLater(0, self.disconnect, ConnectionDone())

    def abortConnection(self) -> None:
        self.aborted = True
        self.disconnecting = True
        self._pending.clear()
        self.clock.callLater(0, self.disconnect, ConnectionAborted())

    def _flow(self) -> None:
        if self._delivering:
            return
        self._delivering = True
        try:
            while (
                self._pending
                and self.producerState == "producing"
                and not self.disconnecting
                and not self.closed
            ):
                self.protocol.dataReceived(self._pending.popleft())
        finally:
            self._delivering = False


def head(
    method: str,
    path: str,
    headers: Mapping[str, str] | None = None,
    body: bytes | None = None,
    length: int | None = None,
) -> bytes:
    """The head of a request."""
    lines = [f"{method} {path} HTTP/1.1", "Host: storage"]
    lines += [f"{name}: {value}" for name, value in (headers or {}).items()]
    if length is None and body is not None:
        length = len(body)
    if length is not None:
        lines.append(f"Content-Length: {length}")
    return "\r\n".join([*lines, "", ""]).encode("latin-1")


# ---- the daemon's APIs


class Proxy:
    """
    Both APIs over two vfs volumes, ``local`` and ``other``.

    :param root: an existing directory for the volumes.
    :param reactor: theirs; a Clock for tests in memory.
    :param threads: makes the threads of a volume from its name.
    """

    def __init__(self, root: Path, reactor: Any, threads: Callable[[str], Any]) -> None:
        self.root = root
        self.reactor = reactor
        self.now = NOW
        self.key = TokenKey(TOKEN_SECRET, LIFETIME)
        self.threads: dict[str, Any] = {}
        self.volume: dict[str, VFSVolume] = {}
        for name in ("local", "other"):
            path = root / name
            path.mkdir(exist_ok=True)
            self.threads[name] = threads(name)
            self.volume[name] = VFSVolume(name, str(path.resolve()), ".", self.threads[name])
        self.volumes = Volumes(self.volume)
        self.background = Background()
        self.handover = Handover()
        self.restart()

    def restart(self, delete_status: int = 204) -> None:
        """Forget everything but the disk, as a new process does."""
        self.uploads = Uploads(self.reactor)
        self.client = ClientAPI(
            self.volumes, self.uploads, self.key, MAX_UPLOAD, self.clock, self.handover
        )
        self.manager = ManagerAPI(
            self.volumes,
            self.uploads,
            self.key,
            MANAGER_SECRET,
            LISTING,
            MAX_UPLOAD,
            delete_status,
            self.background,
            Disposal(self.reactor, self.background),
            self.clock,
        )
        self.client_site = StreamingSite(
            Front(self.client.app, self.client.failed, allow_origin), self.reactor
        )
        self.manager_site = StreamingSite(
            Front(self.manager.app, self.manager.failed), self.reactor
        )

    def clock(self) -> float:
        return self.now

    async def settle(self) -> None:
        """Wait for what goes on in the background."""
        await self.background.wait()

    def folder(self, vfid: str, volume: str = "local") -> Path:
        """Where a vfolder lies."""
        return Path(self.volume[volume].path, *VFolderID.parse(vfid).layout)

    def make_folder(self, volume: str = "local") -> str:
        """Make a vfolder behind the daemon's back, and return its id."""
        vfid = str(uuid4())
        self.folder(vfid, volume).mkdir(parents=True)
        return vfid

    def sign(self, **claims: Any) -> str:
        """A token with any claims, as a node of the original could have made it."""
        return jwt.encode(
            {"exp": int(self.now + LIFETIME), **claims}, TOKEN_SECRET, algorithm="HS256"
        )

    def download_path(self, vfid: str, relpath: str, query: str = "", **claims: Any) -> str:
        token = self.sign(op="download", volume="local", vfid=vfid, relpath=relpath, **claims)
        return f"/download?token={token}{query}"


class TurningClock(Clock):
    """A clock whose next turn has what threads ask of it."""

    def callFromThread(self, function: Callable[..., Any], *args: Any) -> None:
        self.callLater(0, function, *args)


class MemoryProxy(Proxy):
    """Both APIs with a clock and threads that a test moves."""

    def __init__(self, root: Path) -> None:
        clock = TurningClock()
        super().__init__(root, clock, lambda _: HeldThreads(clock))

    async def settle(self) -> None:
        self.reactor.advance(MOMENT)
        await super().settle()

    def connect(self, factory: StreamingSite | None = None) -> Wire:
        """A connection to a site, the client API's when none is given."""
        return Wire(factory or self.client_site, self.reactor)


class Descriptors:
    """The open descriptors of this process, to find those that are left behind."""

    def __init__(self) -> None:
        self._before = self._now()

    def left(self, below: Path) -> set[str]:
        """Files below a directory that were opened since, and still are."""
        return {
            target
            for number, target in self._now() - self._before
            if target.startswith(str(below.resolve()))
        }

    @staticmethod
    def _now() -> set[tuple[str, str]]:
        found = set()
        for number in os.listdir("/proc/self/fd"):
            try:
                found.add((number, os.readlink(f"/proc/self/fd/{number}")))
            except FileNotFoundError:
                continue
        return found


def settings_of(root: Path, **proxy: Any) -> Configuration:
    """
    A configuration with one volume, whose ports are any.

    :param proxy: keys of ``[storage-proxy]``.
    """
    (root / "local").mkdir(parents=True, exist_ok=True)
    return config.check(
        {
            "storage-proxy": {
                "node-id": "i-tests",
                "secret": TOKEN_SECRET,
                "session-expire": "1d",
                "user": -1,
                "group": -1,
                "num-proc": 1,
                **proxy,
            },
            "api": {
                "client": {"service-addr": "127.0.0.1:0"},
                "manager": {"service-addr": "127.0.0.1:0", "secret": MANAGER_SECRET},
            },
            "volume": {"local": {"backend": "vfs", "path": str(root / "local")}},
        }
    )


class Events:
    """Everything that is logged while a test runs."""

    def __init__(self, case: SynchronousTestCase) -> None:
        self._observer = EventLoggingObserver.createWithCleanup(case, globalLogPublisher)

    def __iter__(self) -> Any:
        return iter(self._observer)

    def requests(self) -> list[dict[str, Any]]:
        """The lines of the access log."""
        return [event for event in self if event.get("log_access")]


class MemoryCase(SynchronousTestCase):
    """A test with both APIs in memory, and one vfolder."""

    def setUp(self) -> None:
        root = Path(self.mktemp())
        root.mkdir(parents=True)
        self.root = root.resolve()
        self.proxy = MemoryProxy(root)
        self.clock: Clock = self.proxy.reactor
        self.threads: HeldThreads = self.proxy.threads["local"]
        self.vfid = self.proxy.make_folder()
        self.folder = self.proxy.folder(self.vfid)

    def put(self, relpath: str, content: bytes) -> Path:
        """Put a file into the vfolder."""
        path = self.folder / relpath
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        return path


# ---- the same tests in memory and over real ports


class APICase(TestCase):
    """
    What tests of the APIs use; a transport is mixed in by :func:`on_all_transports`.
    """

    proxy: Proxy

    def call(
        self,
        api: str,
        method: str,
        path: str,
        headers: Mapping[str, str] | None = None,
        body: bytes | None = None,
    ) -> Coroutine[Any, Any, Answer]:
        """Make a request to the ``client`` or the ``manager`` API."""
        raise NotImplementedError

    def begin(self) -> None:
        self.vfid = self.proxy.make_folder()
        self.folder = self.proxy.folder(self.vfid)

    async def manager(
        self,
        method: str,
        path: str,
        params: Any = None,
        headers: Mapping[str, str] | None = None,
        secret: str | None = MANAGER_SECRET,
        body: bytes | None = None,
    ) -> Answer:
        """Call the manager API, as managers do."""
        sent = dict(headers or {})
        if secret is not None:
            sent[AUTH] = secret
        if params is not None:
            body = json.dumps(params).encode()
            sent.setdefault("Content-Type", "application/json")
        return await self.call("manager", method, path, sent, body)

    async def rpc(self, method: str, path: str, **params: Any) -> Answer:
        """Call the manager API about the vfolder of the test, unless another is named."""
        return await self.manager(method, path, {"volume": "local", "vfid": self.vfid, **params})

    async def client(
        self,
        method: str,
        path: str,
        headers: Mapping[str, str] | None = None,
        body: bytes | None = None,
    ) -> Answer:
        """Call the client API."""
        return await self.call("client", method, path, headers, body)

    async def upload_path(self, relpath: str, size: int, query: str = "") -> str:
        """Begin an upload session, and return the path to send it to."""
        answer = await self.rpc("POST", "/folder/file/upload", relpath=relpath, size=size)
        self.assertEqual(answer.status, 200, answer.body)
        return f"/upload?token={quote(answer.json()['token'])}{query}"

    async def patch_at(
        self, path: str, offset: int, body: bytes, headers: Mapping[str, str] | None = None
    ) -> Answer:
        """Send a part of an upload."""
        sent = {
            "Tus-Resumable": "1.0.0",
            "Upload-Offset": str(offset),
            "Content-Type": "application/offset+octet-stream",
            **(headers or {}),
        }
        return await self.client("PATCH", path, sent, body)

    def assert_problem(self, answer: Answer, status: int, suffix: str) -> dict[str, Any]:
        """An error is a problem document with all that managers of any era read."""
        self.assertEqual(answer.status, status, answer.body)
        self.assertEqual(answer.headers["content-type"], "application/problem+json; charset=utf-8")
        problem: dict[str, Any] = answer.json()
        self.assertEqual(problem["type"], f"https://api.backend.ai/probs/storage/{suffix}")
        self.assertEqual(problem["status"], status)
        self.assertTrue(problem["title"])
        self.assertIsInstance(problem["msg"], str)
        self.assertEqual(len(problem["error_code"].split("_")), 3)
        return problem


class InMemory:
    """Requests over a :class:`Wire` each."""

    def setUp(self) -> None:
        root = Path(self.mktemp())  # type: ignore[attr-defined]
        root.mkdir(parents=True)
        self.proxy = MemoryProxy(root)
        self.begin()  # type: ignore[attr-defined]

    async def call(
        self,
        api: str,
        method: str,
        path: str,
        headers: Mapping[str, str] | None = None,
        body: bytes | None = None,
    ) -> Answer:
        factory = getattr(self.proxy, f"{api}_site")
        wire = self.proxy.connect(factory)
        wire.request(method, path, headers, body)
        [*_, answer] = wire.answers(method)
        wire.disconnect(ConnectionDone())
        return answer


class OverTCP:
    """Requests over a real TCP port each."""

    scheme = "http"

    def setUp(self) -> Any:
        root = Path(self.mktemp())  # type: ignore[attr-defined]
        root.mkdir(parents=True)
        self.proxy = Proxy(
            root, real_reactor, lambda name: VolumeThreads(real_reactor, name, size=1)
        )
        self.begin()  # type: ignore[attr-defined]
        self._agent = Agent(
            real_reactor, self.policy(root), pool=HTTPConnectionPool(real_reactor, False)
        )
        self._open = 0
        self._ended: Deferred[None] | None = None
        return Deferred.fromCoroutine(self._listen())

    def policy(self, root: Path) -> Any:
        return BrowserLikePolicyForHTTPS()

    def listener(self) -> ListenerSettings:
        return ListenerSettings(service_addr=("127.0.0.1", 0))

    async def _listen(self) -> None:
        self._ports = {}
        listener = self.listener()
        for api in ("client", "manager"):
            factory = getattr(self.proxy, f"{api}_site")
            self._watch(factory)
            opened = Listener(
                open_socket(*listener.service_addr), listeners.Certificate.load(listener)
            )
            self._ports[api] = opened.listen(real_reactor, factory)

    def _watch(self, factory: Any) -> None:
        build = factory.buildProtocol

        def build_watched(address: Any) -> Any:
            protocol = build(address)
            lost = protocol.connectionLost
            self._open += 1

            def connection_lost(reason: Failure) -> None:
                lost(reason)
                self._open -= 1
                if not self._open and self._ended is not None:
                    self._ended.callback(None)

            protocol.connectionLost = connection_lost
            return protocol

        factory.buildProtocol = build_watched

    def tearDown(self) -> Any:
        return Deferred.fromCoroutine(self._close())

    async def _close(self) -> None:
        for port in self._ports.values():
            await port.stopListening()
        if self._open:
            self._ended = Deferred()
            await self._ended
        await self.proxy.settle()
        for threads in self.proxy.threads.values():
            # There is one thread: what was asked before, and what followed from it, is done then.
            for _ in range(3):
                await threads.run(lambda: None)
            threads.stop()

    async def call(
        self,
        api: str,
        method: str,
        path: str,
        headers: Mapping[str, str] | None = None,
        body: bytes | None = None,
    ) -> Answer:
        from twisted.web.client import FileBodyProducer

        port = self._ports[api].getHost().port
        response = await self._agent.request(
            method.encode(),
            f"{self.scheme}://127.0.0.1:{port}{path}".encode(),
            Headers({name.encode(): [value] for name, value in (headers or {}).items()}),
            None if body is None else FileBodyProducer(BytesIO(body)),
        )
        content = await readBody(response)
        found = {
            name.decode().lower(): values[-1].decode("latin-1")
            for name, values in response.headers.getAllRawHeaders()
        }
        if response.length and isinstance(response.length, int):
            # The client takes it out of the headers.
            found.setdefault("content-length", str(response.length))
        return Answer(response.code, found, content)


class OverTLS(OverTCP):
    """Requests over TLS, with a certificate made for the test."""

    scheme = "https"

    def policy(self, root: Path) -> Any:
        self._certificate, self._key = make_certificate(root)
        trusted = Certificate.loadPEM(self._certificate.read_bytes())
        return BrowserLikePolicyForHTTPS(trustRootFromCertificates([trusted]))

    def listener(self) -> ListenerSettings:
        return ListenerSettings(
            service_addr=("127.0.0.1", 0),
            ssl_enabled=True,
            ssl_cert=str(self._certificate),
            ssl_privkey=str(self._key),
        )


def on_all_transports(mixin: type[Any]) -> dict[str, type[Any]]:
    """
    Test cases for a mixin of API tests: in memory, over TCP and over TLS.

    :return: for the module's ``globals()``.
    """
    made: dict[str, type[Any]] = {}
    for transport in (InMemory, OverTCP, OverTLS):
        name = f"{mixin.__name__}{transport.__name__}"
        made[name] = type(
            name, (transport, mixin, APICase), {"__module__": mixin.__module__, "__doc__": ""}
        )
    return made


def make_certificate(directory: Path, name: str = "127.0.0.1") -> tuple[Path, Path]:
    """
    Make a certificate for the loopback interface.

    :return: the paths of the certificate and of its key.
    """
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(
            x509.SubjectAlternativeName([x509.IPAddress(IPv4Address("127.0.0.1"))]), False
        )
        .add_extension(x509.BasicConstraints(True, None), True)
        .sign(key, hashes.SHA256())
    )
    paths = directory / f"{name}.crt", directory / f"{name}.key"
    paths[0].write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    paths[1].write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    return paths

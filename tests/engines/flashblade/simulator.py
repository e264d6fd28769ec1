"""
The array on a port: HTTP over TLS, sessions, and what goes wrong on the way.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from attrs import Factory, define, field, frozen
from klein import Klein
from twisted.internet.defer import Deferred
from twisted.internet.endpoints import SSL4ServerEndpoint
from twisted.internet.interfaces import IListeningPort
from twisted.protocols.policies import ProtocolWrapper, WrappingFactory
from twisted.python.failure import Failure
from twisted.web.server import Request, Site
from werkzeug.exceptions import HTTPException

from tests.engines.flashblade import rest
from tests.engines.flashblade.array import Array, Refused
from tests.engines.flashblade.certificates import Authority, Shown
from tests.engines.flashblade.fields import parse
from tests.engines.flashblade.listing import Query

JSON = "application/json"


@frozen
class Answer:
    """
    What a client gets.

    :ivar headers: beside those that tell what the body is.
    """

    status: int
    body: bytes = b""
    content_type: str = JSON
    headers: dict[str, str] = Factory(dict)

    @classmethod
    def of(cls, status: int, body: Any, **headers: str) -> Answer:
        """
        An object of JSON.

        :param headers: their names with ``_`` for ``-``.
        """
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        return cls(status, json.dumps(body).encode(), JSON, named)

    def send(self, request: Request) -> None:
        """Send all of it."""
        self._begin(request)
        request.write(self.body)
        request.finish()

    def cut(self, request: Request) -> None:
        """Send half of the body, and end the connection."""
        self._begin(request)
        request.write(self.body[: len(self.body) // 2])
        request.channel.loseConnection()

    def _begin(self, request: Request) -> None:
        request.setResponseCode(self.status)
        request.setHeader(b"Content-Type", self.content_type.encode())
        request.setHeader(b"Content-Length", b"%d" % len(self.body))
        for name, value in self.headers.items():
            request.setHeader(name.encode(), value.encode())


@frozen
class Seen:
    """
    A request that has come.

    :ivar path: without the query.
    :ivar query: the parameters, of which each came once.
    """

    method: str
    path: str
    query: dict[str, str]
    body: bytes = field(repr=False)


#: Does what is wrong with a request. It may call for the answer that would be right.
Fault = Callable[[Request, Callable[[], Answer]], None]


def instead(answer: Answer) -> Fault:
    """Another answer; the array does nothing."""
    return lambda request, _: answer.send(request)


def error(status: int, message: str = "Internal error.", context: str | None = None) -> Fault:
    """An error of the array's own."""
    return instead(Answer.of(status, {"errors": [{"context": context, "message": message}]}))


def overloaded(status: int = 429, **headers: str) -> Fault:
    """
    The array has too much to do.

    :param status: 429 of its gateway, 503, or 500 of its middleware.
    :param headers: ``Retry_After`` or ``RateLimit_Reset``, seconds.
    """
    bodies: dict[int, Any] = {
        429: {"message": "API rate limit exceeded"},
        500: {"errors": [{"context": None, "message": "Server is busy"}]},
    }
    fallback = {"errors": [{"context": None, "message": "Service unavailable"}]}
    return instead(Answer.of(status, bodies.get(status, fallback), **headers))


def garbage(body: bytes = b'{"items": [', content_type: str = JSON) -> Fault:
    """An answer that is not what it should be."""
    return instead(Answer(200, body, content_type))


def cut_off(request: Request, right: Callable[[], Answer]) -> None:
    """Half of the right answer."""
    right().cut(request)


def dropped(request: Request, right: Callable[[], Answer]) -> None:
    """The connection is reset; the array has done nothing."""
    request.channel.transport.abortConnection()


def answer_lost(request: Request, right: Callable[[], Answer]) -> None:
    """The array does what it is asked for, and the connection is reset before it says so."""
    right()
    request.channel.transport.abortConnection()


class Held:
    """
    Answers that come when the test says so, or never.

    :ivar requests: those that wait.
    """

    def __init__(self) -> None:
        self.requests: list[Request] = []
        self._released: list[Callable[[], None]] = []
        self._waiting: list[tuple[int, Deferred[None]]] = []

    def __call__(self, request: Request, right: Callable[[], Answer]) -> None:
        """Let it wait."""
        self.requests.append(request)
        request.notifyFinish().addErrback(lambda _: self._gone(request))
        self._released.append(lambda: right().send(request) if request in self.requests else None)
        self._tell()

    def wait(self, number: int = 1) -> Deferred[None]:
        """Wait until so many requests do; 0 for that all of them have been given up."""
        done: Deferred[None] = Deferred()
        self._waiting.append((number, done))
        self._tell()
        return done

    def release(self) -> None:
        """Answer those that wait."""
        released, self._released = self._released, []
        for send in released:
            send()
        self.requests.clear()

    def _gone(self, request: Request) -> None:
        if request in self.requests:
            self.requests.remove(request)
        self._tell()

    def _tell(self) -> None:
        number = len(self.requests)
        ready = [(one, done) for one, done in self._waiting if number >= one > 0 or number == one]
        self._waiting = [pair for pair in self._waiting if pair not in ready]
        for _, done in ready:
            done.callback(None)


@define
class _Planned:
    """
    A fault that is to come.

    :ivar left: how often; none for always.
    :ivar where: the end of the path.
    """

    fault: Fault
    left: int | None
    where: str


class _Connections(WrappingFactory):
    """
    Knows what is connected, so that it can be ended.

    :ivar opened: how many have been.
    """

    opened = 0
    ended: Deferred[None] | None = None

    def registerProtocol(self, p: ProtocolWrapper) -> None:
        """One has been opened."""
        self.opened += 1
        super().registerProtocol(p)

    def unregisterProtocol(self, p: ProtocolWrapper) -> None:
        """One has been closed."""
        super().unregisterProtocol(p)
        self._tell()

    def end(self) -> Deferred[None]:
        """Reset all of them."""
        ended: Deferred[None] = Deferred()
        self.ended = ended
        for protocol in list(self.protocols):
            protocol.transport.abortConnection()
        self._tell()
        return ended

    def _tell(self) -> None:
        if self.ended is not None and not self.protocols:
            ended, self.ended = self.ended, None
            ended.callback(None)


class Simulator:
    """
    An array on a port of 127.0.0.1.

    :ivar ca: the path of its authority's certificate.
    :ivar certificate: what is shown to those who connect; set its ``kind``.
    :ivar requests: that have come, those with faults too.
    """

    app = Klein()

    def __init__(self, reactor: Any, array: Array, directory: Path) -> None:
        """
        :param directory: an existing one, where the certificate of the authority is put.
        """
        self.array = array
        self.requests: list[Seen] = []
        self.ca = directory / "flashblade-ca.pem"
        authority = Authority()
        self.ca.write_bytes(authority.pem)
        self.certificate = Shown(authority)
        self._reactor = reactor
        self._planned: list[_Planned] = []
        self._port: IListeningPort | None = None
        self._connections = _Connections(Site(self.app.resource()))

    async def start(self, port: int = 0) -> None:
        """
        Listen.

        :param port: 0 for any.
        """
        self._port = await SSL4ServerEndpoint(
            self._reactor, port, self.certificate, interface="127.0.0.1"
        ).listen(self._connections)

    async def stop(self) -> None:
        """Close the port, and what is connected to it."""
        assert self._port is not None, "it listens"
        await self._port.stopListening()
        await self._connections.end()

    @property
    def address(self) -> str:
        """Host and port, as the vendor's clients take them."""
        assert self._port is not None, "it listens"
        return f"127.0.0.1:{self._port.getHost().port}"

    @property
    def url(self) -> str:
        """Where the API is."""
        return f"https://{self.address}"

    @property
    def opened(self) -> int:
        """How many connections there have been, those where TLS has failed too."""
        return self._connections.opened

    def plan(self, fault: Fault, times: int | None = 1, where: str = "") -> None:
        """
        Let something go wrong with the requests to come, after what has been planned before.

        :param times: how often; none for always.
        :param where: the end of the paths that it is for, such as ``/login``.
        """
        self._planned.append(_Planned(fault, times, where))

    def mend(self) -> None:
        """Let nothing go wrong any more."""
        self._planned.clear()

    def count(self, method: str, where: str = "") -> int:
        """
        How many requests have come.

        :param where: the end of their paths.
        """
        return sum(seen.method == method and seen.path.endswith(where) for seen in self.requests)

    # ---- routes

    @app.route("/api/api_version", methods=["GET"])
    def _versions(self, request: Request) -> Deferred[None]:
        return self._serve(request, lambda: Answer.of(200, {"versions": self.array.versions}))

    @app.route("/api/login", methods=["POST"])
    def _login(self, request: Request) -> Deferred[None]:
        def log_in() -> Answer:
            token = self.array.log_in(_header(request, b"api-token"))
            return Answer.of(200, {"username": "pureuser"}, x_auth_token=token)

        return self._serve(request, log_in)

    @app.route("/api/logout", methods=["POST"])
    def _logout(self, request: Request) -> Deferred[None]:
        def log_out() -> Answer:
            self.array.log_out(_header(request, b"x-auth-token"))
            return Answer(200)

        return self._serve(request, log_out)

    @app.route("/api/<version>/<path:resource>", methods=["GET", "POST", "PATCH", "DELETE"])
    def _call(self, request: Request, version: str, resource: str) -> Deferred[None]:
        if version == "2.latest" and any(one.startswith("2.") for one in self.array.versions):
            version = self.array.versions[-1]

        def call() -> Answer:
            if version not in self.array.versions:
                raise Refused(404, "Not found.")
            if not self.array.use(_header(request, b"x-auth-token")):
                raise Refused(self.array.expired_status, "Invalid authentication credentials")
            query = Query(_query(request))
            made = rest.Call(self.array, parse(version), resource, query, _read(request))
            body = rest.answer(request.method.decode(), made)
            return Answer(200) if body is None else Answer.of(200, body)

        return self._serve(request, call, version.startswith("1."))

    @app.handle_errors(HTTPException)
    def _not_found(self, request: Request, failure: Failure) -> bytes:
        request.setResponseCode(getattr(failure.value, "code", 404))
        request.setHeader(b"Content-Type", JSON.encode())
        return _error(Refused(404, "Not found."), False).body

    def _serve(
        self, request: Request, answer: Callable[[], Answer], is_first: bool = False
    ) -> Deferred[None]:
        """
        Answer, or do what is wrong with this request.

        :return: fires when the request is over.
        """
        over: Deferred[None] = Deferred()
        request.notifyFinish().addBoth(lambda _: over.callback(None))
        path = request.path.decode()
        body = request.content.read()
        request.content.seek(0)
        self.requests.append(Seen(request.method.decode(), path, _query(request), body))
        if identity := request.getHeader(b"x-request-id"):
            request.setHeader(b"X-Request-ID", identity)

        def right() -> Answer:
            try:
                return answer()
            except Refused as refused:
                return _error(refused, is_first)

        self._next_fault(path)(request, right)
        return over

    def _next_fault(self, path: str) -> Fault:
        for planned in self._planned:
            if path.endswith(planned.where):
                if planned.left is not None:
                    planned.left -= 1
                    if not planned.left:
                        self._planned.remove(planned)
                return planned.fault
        return lambda request, right: right().send(request)


def _header(request: Request, name: bytes) -> str | None:
    value = request.getHeader(name)
    return None if value is None else value.decode("latin-1")


def _query(request: Request) -> dict[str, str]:
    return {
        name.decode(): values[-1].decode(errors="replace") for name, values in request.args.items()
    }


def _read(request: Request) -> dict[str, Any]:
    """The body of a request; nothing when it has none."""
    content = request.content.read()
    try:
        body = json.loads(content) if content else {}
    except ValueError:
        body = None
    if not isinstance(body, dict):
        raise Refused(400, "Invalid JSON.")
    return body


def _error(refused: Refused, is_first: bool) -> Answer:
    """An error, as the gateway in front of the array writes it, or as the array does."""
    if refused.status in (401, 403, 429):
        return Answer.of(refused.status, {"message": refused.message})
    code = {"code": refused.status} if is_first else {}
    found = {**code, "context": refused.context, "message": refused.message}
    return Answer.of(refused.status, {"errors": [found]})

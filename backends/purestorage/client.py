# -*- test-case-name: tests.test_purestorage_client -*-
"""
The REST API of an array: sessions, patience, pages and errors.

Whoever has the API token logs in for a session, whose token goes with each request. It ends when it
was not used for some time, and then nobody knows: the array answers 403, as it does to what the
user may not do.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Coroutine, Iterator, Mapping
from math import ceil
from typing import Any, NoReturn, TypeVar

from attrs import field, frozen
from OpenSSL import SSL
from service_identity import VerificationError
from treq.client import HTTPClient
from twisted.internet.defer import CancelledError, Deferred, DeferredSemaphore, succeed
from twisted.internet.error import ConnectError, DNSLookupError
from twisted.internet.protocol import Protocol, connectionDone
from twisted.internet.task import deferLater
from twisted.logger import Logger
from twisted.python.failure import Failure
from twisted.web.client import ResponseDone
from twisted.web.http import PotentialDataLoss
from twisted.web.http_headers import Headers
from twisted.web.iweb import IResponse
from werkzeug.http import parse_date

from backends.purestorage.connections import CONNECTIONS, NoAuthority
from backends.purestorage.dialect import Dialect, dialect, newest
from storageproxy.errors import BackendFailure, StorageProxyError, VolumeUnavailable

T = TypeVar("T")

#: Bytes of the largest answer, with all of its pages.
MAX_ANSWER = 4 << 20

#: Bytes that a page counts for at least, so that there are a thousand of them at most.
_MIN_PAGE = MAX_ANSWER // 1000

#: Seconds before a busy array is asked again when it does not say: at first, and at most.
FIRST_PAUSE, LONGEST_PAUSE = 1.0, 30.0
#: Seconds that are waited at least.
SHORTEST_PAUSE = 0.1

#: Seconds for the last words to an array.
FAREWELL = 2.0

#: Characters of the longest message of an array that is told on.
_MAX_MESSAGE = 500

#: What nobody could read, or a terminal would obey: control characters, halves of characters.
_UNTELLABLE = re.compile(r"[^ -~\u00a0-\ud7ff\ue000-\U0010ffff]+")

_UNAUTHORIZED = (401, 403)

#: The header with the token of a session.
_SESSION = b"x-auth-token"


class ArrayError(BackendFailure):
    """
    The array has answered, by an error.

    :param code: its HTTP status.
    """

    def __init__(self, message: str, code: int) -> None:
        super().__init__(message)
        self.code = code


@frozen(eq=False)
class Session:
    """
    What a login has brought.

    :param version: of the API, as it stands in paths.
    :param token: what requests are authorized by.
    """

    version: str
    token: str = field(repr=False)

    @property
    def dialect(self) -> Dialect:
        """The generation of the API."""
        return dialect(self.version)


@frozen
class _Request:
    """
    :param path: with the version, without parameters.
    :param body: what is sent as JSON, None for nothing.
    """

    method: str
    path: str
    params: Mapping[str, str] = field(factory=dict)
    body: Mapping[str, Any] | None = None

    def data(self) -> bytes | None:
        """The body as it is sent."""
        return None if self.body is None else json.dumps(self.body).encode()

    def __str__(self) -> str:
        return f"{self.method} {self.path}"


@frozen
class _Answer:
    status: int
    headers: Headers
    body: bytes

    def content(self) -> Any:
        """
        :return: the decoded JSON; None when it is none.
        """
        try:
            return json.loads(self.body)
        except (ValueError, RecursionError):
            return None

    def message(self) -> str:
        """What the array has to say, or the gateway before it."""
        content = self.content()
        table = content if isinstance(content, dict) else {}
        errors = table.get("errors") or [table]
        said = []
        for error in errors if isinstance(errors, list) else ():
            if isinstance(error, dict) and isinstance(error.get("message"), str):
                context = error.get("context")
                prefix = f"{context}: " if context and isinstance(context, str) else ""
                said.append(prefix + error["message"])
        return _UNTELLABLE.sub(" ", "; ".join(said))

    def is_busy(self) -> bool:
        """Whether the same request is welcome in a moment."""
        if self.status == 500:
            return "server is busy" in self.message().lower()
        return self.status in (429, 503)

    def pause(self, now: float) -> float | None:
        """
        Seconds after which the array wants to be asked again, None when it does not say. RFC 9110,
        section 10.2.3.

        :param now: seconds since the epoch.
        """
        for name in (b"Retry-After", b"RateLimit-Reset"):
            for value in self.headers.getRawHeaders(name) or ():
                if re.fullmatch(rb"[0-9]{1,9}", value):
                    return max(SHORTEST_PAUSE, float(value))
                date = parse_date(value.decode("latin-1"))
                # A clock that goes differently must not make anybody hurry.
                if date is not None and date.timestamp() > now:
                    return date.timestamp() - now
        return None


class _TooLarge(Exception):
    pass


class _Body(Protocol):
    """Takes an answer, as far as it is not too large."""

    def __init__(self) -> None:
        self.done: Deferred[bytes] = Deferred(lambda _: self._abort())
        self._pieces: list[bytes] = []
        self._size = 0

    def dataReceived(self, data: bytes) -> None:
        self._size += len(data)
        if self._size <= MAX_ANSWER:
            self._pieces.append(data)
        elif not self.done.called:
            self.done.errback(_TooLarge())
            self._abort()

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        if self.done.called:
            return
        # An answer that ends with its connection is whole when it is JSON.
        if reason.check(ResponseDone, PotentialDataLoss):
            self.done.callback(b"".join(self._pieces))
        else:
            self.done.errback(reason)

    def _abort(self) -> None:
        # Of what Twisted lets a body do to its connection, only this does not wait for the array:
        # loseConnection() goes on until that has agreed, by TLS.
        self.transport.stopProducing()  # type: ignore[union-attr]


class RESTClient:
    """
    One user of the REST API of one array.

    :param http: a treq client.
    :param volume: the name of the volume that it is for, which its errors begin with.
    :param endpoint: the URL of the array, without a path.
    :param version: of the API, None to take the best that the array has.
    :param deadline: seconds that an answer may take, with all that is needed for it.
    :param close: closes what the treq client has open.
    """

    def __init__(
        self,
        reactor: Any,
        http: HTTPClient,
        volume: str,
        endpoint: str,
        api_token: str,
        version: str | None,
        deadline: float,
        close: Callable[[], Deferred[Any]] = lambda: succeed(None),
    ) -> None:
        self.endpoint = endpoint
        self._reactor = reactor
        self._http = http
        self._where = f"volume {volume}: the array {endpoint}"
        self._api_token = api_token
        self._version = version
        self._deadline = deadline
        self._close = close
        self._log = Logger("storageproxy.purestorage")
        self._turns = DeferredSemaphore(CONNECTIONS)
        self._session: Session | None = None
        self._waiting: list[Deferred[Session]] = []

    async def dialect(self) -> Dialect:
        """The generation of the API that is spoken, which takes a session."""
        return (await self._in_time(self._opened())).dialect

    async def items(self, path: str, **params: str) -> list[Any]:
        """
        Ask for a list, page by page.

        :param path: such as ``file-systems``.
        :return: its items, of whatever form.
        :raises ArrayError: when the array refuses.
        :raises StorageProxyError: when it cannot be reached or does not answer in time
            (VolumeUnavailable), or not as it should (BackendFailure).
        """
        return await self._in_time(self._pages(path, params, self._end()))

    async def _pages(self, path: str, params: Mapping[str, str], end: float) -> list[Any]:
        found: list[Any] = []
        token = ""
        left = MAX_ANSWER
        while True:
            session, answer = await self._authorized("GET", path, params, None, end)
            self._check(f"GET {path}", answer)
            page = self._content(f"GET {path}", answer)
            items = page.get("items")
            if not isinstance(items, list):
                raise self._failure(f"answers GET {path} without items")
            found += items
            pagination = session.dialect.pagination
            about = page if pagination is None else page.get(pagination)
            following = about.get("continuation_token") if isinstance(about, dict) else None
            if not following:
                return found
            left -= max(len(answer.body), _MIN_PAGE)
            if following == token or not isinstance(following, str) or left < 0:
                raise self._failure(f"answers GET {path} with pages that never end")
            token = following
            params = {**params, session.dialect.continuation: token}

    async def change(self, path: str, params: Mapping[str, str], values: Mapping[str, Any]) -> None:
        """
        Change something.

        :param values: what it is to have.
        :raises StorageProxyError: as :meth:`items`.
        """
        work = self._authorized("PATCH", path, params, values, self._end())
        _, answer = await self._in_time(work)
        self._check(f"PATCH {path}", answer)

    async def stop(self) -> None:
        """End the session, and close the connections."""
        session, self._session = self._session, None
        if session is not None:
            # Without it the session ends by itself.
            leaving = self._send(_Request("POST", "/api/logout"), {_SESSION: session.token})
            await self._try(Deferred.fromCoroutine(leaving))
        await self._try(self._close())

    async def _try(self, work: Deferred[Any]) -> None:
        try:
            await work.addTimeout(FAREWELL, self._reactor)
        except Exception as error:
            self._log.debug("While stopping: {error}", error=self._tellable(str(error)))

    # ---- sessions

    async def _opened(self, instead: Session | None = None) -> Session:
        """
        A session: the one that there is, or a new one, which one login opens for all who wait.

        :param instead: one that is of no use any more.
        """
        if self._session is not None and self._session is not instead:
            return self._session
        waiting: Deferred[Session] = Deferred()
        self._waiting.append(waiting)
        if len(self._waiting) == 1:
            # Those who wait may give up; the login is for the others too.
            self._in_time(self._log_in(self._end())).addBoth(self._tell)
        return await waiting

    def _tell(self, result: Session | Failure) -> None:
        if isinstance(result, Session):
            self._session = result
        waiting, self._waiting = self._waiting, []
        for one in waiting:
            one.callback(result)

    async def _log_in(self, end: float) -> Session:
        version = self._version or await self._negotiate(end)
        request = _Request("POST", "/api/login")
        answer = await self._patiently(request, {b"api-token": self._api_token}, end)
        if answer.status in _UNAUTHORIZED:
            raise self._refusal(
                answer, "does not accept the API token: give purity_api_token a valid one"
            )
        self._check(str(request), answer)
        [token, *_] = answer.headers.getRawHeaders(_SESSION) or [b""]
        if not token:
            raise self._failure("gives no session: purity_endpoint may be something else's")
        return Session(version, token.decode("latin-1"))

    async def _negotiate(self, end: float) -> str:
        request = _Request("GET", "/api/api_version")
        answer = await self._patiently(request, {}, end)
        self._check(str(request), answer)
        content = self._content(str(request), answer)
        offered = content.get("versions")
        if not isinstance(offered, list):
            raise self._failure("does not tell the versions of its REST API")
        best = newest(one for one in offered if isinstance(one, str))
        if best is None:
            raise self._failure("offers no version of the REST API that is spoken here")
        return best

    # ---- requests

    async def _authorized(
        self,
        method: str,
        path: str,
        params: Mapping[str, str],
        body: Mapping[str, Any] | None,
        end: float,
    ) -> tuple[Session, _Answer]:
        def ask(session: Session) -> Coroutine[Any, Any, _Answer]:
            request = _Request(method, f"/api/{session.version}/{path}", params, body)
            headers = {_SESSION: session.token, b"Content-Type": "application/json"}
            return self._patiently(request, headers, end)

        session = await self._opened()
        answer = await ask(session)
        if answer.status in _UNAUTHORIZED:
            session = await self._opened(instead=session)
            again = await ask(session)
            if again.status not in _UNAUTHORIZED:
                answer = again
        return session, answer

    async def _patiently(
        self, request: _Request, headers: Mapping[bytes, str], end: float
    ) -> _Answer:
        """
        Ask until the array is not busy.

        :param end: the time by which it has to be done.
        """
        longer = FIRST_PAUSE
        while True:
            answer = await self._send(request, headers)
            if not answer.is_busy():
                return answer
            pause = answer.pause(self._reactor.seconds())
            if pause is None:
                pause, longer = longer, min(LONGEST_PAUSE, 2 * longer)
            if self._reactor.seconds() + pause >= end:
                raise VolumeUnavailable(
                    f"{self._where} is too busy: {self._said(answer)}", ceil(min(pause, 3600))
                )
            await deferLater(self._reactor, pause)

    async def _send(self, request: _Request, headers: Mapping[bytes, str]) -> _Answer:
        async with self._turns:
            try:
                response = await self._http.request(
                    request.method,
                    self.endpoint + request.path,
                    headers=Headers({name: [value.encode()] for name, value in headers.items()}),
                    params=dict(request.params),
                    data=request.data(),
                    # The token is for this array alone.
                    allow_redirects=False,
                    unbuffered=True,
                    reactor=self._reactor,
                )
                return _Answer(response.code, response.headers, await _read(response))
            except CancelledError:
                raise
            except Exception as error:
                raise self._translated(error) from None

    def _end(self) -> float:
        end: float = self._reactor.seconds() + self._deadline
        return end

    def _in_time(self, work: Coroutine[Any, Any, T]) -> Deferred[T]:
        def too_late(_: object, seconds: float) -> NoReturn:
            raise VolumeUnavailable(f"{self._where} does not answer within {seconds:g} seconds")

        return Deferred.fromCoroutine(work).addTimeout(self._deadline, self._reactor, too_late)

    # ---- errors

    def _check(self, what: str, answer: _Answer) -> None:
        if not 200 <= answer.status < 300:
            raise self._refusal(answer, f"refuses {what}")

    def _content(self, what: str, answer: _Answer) -> Mapping[str, Any]:
        content = answer.content()
        if not isinstance(content, dict):
            raise self._failure(f"answers {what} with something that is no JSON table")
        return content

    def _said(self, answer: _Answer) -> str:
        said = self._tellable(answer.message())
        return said[:_MAX_MESSAGE] or f"HTTP status {answer.status}"

    def _refusal(self, answer: _Answer, what: str) -> ArrayError:
        return ArrayError(f"{self._where} {what}: {self._said(answer)}", answer.status)

    def _failure(self, what: str) -> BackendFailure:
        return BackendFailure(f"{self._where} {what}")

    def _translated(self, error: Exception) -> StorageProxyError:
        """What a request has come to that has no answer."""
        if isinstance(error, _TooLarge):
            return self._failure(f"answers with more than {MAX_ANSWER} bytes")
        if isinstance(error, NoAuthority):
            return self._failure(
                f"is not asked, as the user of the daemon cannot read purity_ca_file: {error}"
            )
        if isinstance(error, ConnectError | DNSLookupError):
            return VolumeUnavailable(f"{self._where} cannot be reached: {error}")
        for cause in _causes(error):
            if isinstance(cause, VerificationError):
                return self._failure(
                    "has a certificate for another name than the one in purity_endpoint"
                )
            if isinstance(cause, SSL.Error):
                return self._failure(
                    f"cannot be spoken to by TLS: {_tls_reason(cause)}; if it is its authority that"
                    " is not known, name that in purity_ca_file"
                )
        return VolumeUnavailable(
            f"{self._where} has closed the connection before its answer was complete"
        )

    def _tellable(self, text: str) -> str:
        """A text without secrets, should anybody have put them there."""
        secrets = [self._api_token, self._session.token if self._session else ""]
        for secret in filter(None, secrets):
            text = text.replace(secret, "***")
        return text


async def _read(response: IResponse) -> bytes:
    body = _Body()
    response.deliverBody(body)
    return await body.done


def _causes(error: BaseException) -> Iterator[BaseException]:
    """An error of Twisted's HTTP client, and those that it wraps."""
    yield error
    for reason in getattr(error, "reasons", ()):
        yield from _causes(reason.value)


def _tls_reason(error: SSL.Error) -> str:
    """The last words of what OpenSSL says."""
    queue = error.args[0] if error.args and isinstance(error.args[0], list) else []
    return str(queue[-1][-1]) if queue and queue[-1] else "it has closed the connection"

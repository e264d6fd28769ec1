"""
The REST client of a FlashBlade, with an array in memory.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

from attrs import define, field
from treq.testing import StubTreq
from twisted.internet.defer import Deferred, fail, succeed
from twisted.internet.error import ConnectionRefusedError, DNSLookupError
from twisted.internet.task import Clock
from twisted.logger import globalLogPublisher
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase
from twisted.web.resource import Resource
from twisted.web.server import NOT_DONE_YET, Request

from backends.purestorage import client
from backends.purestorage.client import ArrayError, RESTClient
from backends.purestorage.dialect import V1, V2
from storageproxy.errors import BackendFailure, VolumeUnavailable
from storageproxy.testing import result_of

TOKEN = "T-0e1f-the-token"
URL = "https://array.example.com"

Reply = tuple[int, Any] | tuple[int, Any, Mapping[str, str]]


@define
class MemoryArray(Resource):
    """
    An array that answers as it is told.

    :ivar replies: what it says next to each path, instead of the usual: status, body and headers,
        or nothing when it does not answer.
    :ivar asked: the method and path of each request.
    """

    isLeaf = True

    versions: Any = field(factory=lambda: ["1.0", "1.12", "2.0", "2.9"])
    replies: dict[str, list[Any]] = field(factory=dict)
    asked: list[str] = field(factory=list)
    bodies: list[Any] = field(factory=list)
    queries: list[dict[str, str]] = field(factory=list)
    sessions: list[str] = field(factory=list)
    held: list[Request] = field(factory=list)

    def __attrs_post_init__(self) -> None:
        Resource.__init__(self)

    def say(self, path: str, *replies: Any) -> None:
        self.replies.setdefault(path, []).extend(replies)

    def expire(self) -> None:
        self.sessions.clear()

    @property
    def logins(self) -> int:
        return self.asked.count("POST /api/login")

    def render(self, request: Request) -> Any:
        path = request.path.decode()
        self.asked.append(f"{request.method.decode()} {path}")
        self.queries.append(
            {name.decode(): values[0].decode() for name, values in request.args.items()}
        )
        self.bodies.append(request.content.read())
        waiting = self.replies.get(path)
        reply = waiting.pop(0) if waiting else self.usual(request)
        if reply is None:
            self.held.append(request)
            return NOT_DONE_YET
        status, body, *headers = reply
        request.setResponseCode(status)
        for name, value in (headers[0] if headers else {}).items():
            request.setHeader(name.encode(), value.encode())
        return body if isinstance(body, bytes) else json.dumps(body).encode()

    def usual(self, request: Request) -> Reply:
        if request.path == b"/api/api_version":
            return 200, {"versions": self.versions}
        if request.path == b"/api/login":
            if header(request, b"api-token") != TOKEN:
                return 401, {"errors": [{"context": None, "message": "Invalid API token."}]}
            self.sessions.append(f"session-{self.logins}")
            return 200, {"username": "pureuser"}, {"x-auth-token": self.sessions[-1]}
        if request.path == b"/api/logout":
            self.sessions.remove(header(request, b"x-auth-token"))
            return 200, b""
        if header(request, b"x-auth-token") not in self.sessions:
            return 403, {"message": "Invalid authentication credentials"}
        return 200, {"items": [{"name": "array"}], "continuation_token": None}


def header(request: Request, name: bytes) -> str:
    return (request.getHeader(name) or b"").decode()


class ClientCase(SynchronousTestCase):
    def setUp(self) -> None:
        self.array = MemoryArray()
        self.clock = Clock()
        self.treq = StubTreq(self.array)
        self.rest = self.make()
        self.events: list[Any] = []
        globalLogPublisher.addObserver(self.events.append)
        self.addCleanup(globalLogPublisher.removeObserver, self.events.append)

    def make(self, token: str = TOKEN, version: str | None = None, http: Any = None) -> RESTClient:
        return RESTClient(self.clock, http or self.treq, "fb", URL, token, version, 15.0)

    def begin(self, path: str = "arrays", **params: str) -> Deferred[Any]:
        return Deferred.fromCoroutine(self.rest.items(path, **params))

    def items(self, path: str = "arrays", **params: str) -> list[Any]:
        return result_of(self.rest.items(path, **params))

    def error(self, kind: type[Exception], path: str = "arrays") -> Any:
        return self.assertRaises(kind, self.items, path)


class SessionTests(ClientCase):
    def test_negotiated(self) -> None:
        """The best version of the array is spoken, in a session."""
        self.assertEqual(self.items(), [{"name": "array"}])
        self.assertEqual(
            self.array.asked, ["GET /api/api_version", "POST /api/login", "GET /api/2.9/arrays"]
        )
        self.assertIs(result_of(self.rest.dialect()), V2)

    def test_old_array(self) -> None:
        """An array that has no 2.x is spoken to by 1.x."""
        self.array.versions = ["1.0", "1.7", "1.8", "1.8.1"]
        self.items()
        self.assertEqual(self.array.asked[-1], "GET /api/1.8.1/arrays")
        self.assertIs(result_of(self.rest.dialect()), V1)

    def test_configured(self) -> None:
        """A version that is configured is not asked for."""
        self.rest = self.make(version="1.9")
        self.items()
        self.assertEqual(self.array.asked, ["POST /api/login", "GET /api/1.9/arrays"])

    def test_too_old(self) -> None:
        """An array that speaks nothing that is known here is told, and not logged in to."""
        for versions in ([], ["1.0", "1.7"], [8, None], "1.12", {"1": 2}, None):
            self.array.versions = versions
            self.assertIn("version", self.error(BackendFailure).message)
        self.assertEqual(self.array.logins, 0)

    def test_kept(self) -> None:
        """A session lasts for many requests."""
        for _ in range(5):
            self.items()
        self.assertEqual(self.array.logins, 1)

    def test_first_callers(self) -> None:
        """Those who come while the login is under way wait for it, and do not make another."""
        self.array.say("/api/login", None)
        callers = [self.begin() for _ in range(10)]
        self.assertEqual(self.array.logins, 1)
        [login] = self.array.held
        login.setHeader(b"x-auth-token", b"later")
        self.array.sessions.append("later")
        login.finish()
        self.treq.flush()
        for caller in callers:
            self.assertEqual(self.successResultOf(caller), [{"name": "array"}])
        self.assertEqual(self.array.logins, 1)

    def test_expired(self) -> None:
        """Ten callers with an expired session cause one login, and get their answers."""
        self.items()
        self.array.say("/api/2.9/arrays", *[None] * client.CONNECTIONS)
        callers = [self.begin() for _ in range(10)]
        self.array.expire()
        self.array.say("/api/login", None)
        held, self.array.held = self.array.held, []
        self.assertEqual(len(held), client.CONNECTIONS)
        for request in held:
            request.setResponseCode(403)
            request.finish()
        self.treq.flush()
        self.assertEqual(self.array.logins, 2)
        [login] = self.array.held
        login.setHeader(b"x-auth-token", b"new")
        self.array.sessions.append("new")
        login.finish()
        self.treq.flush()
        for caller in callers:
            self.assertEqual(self.successResultOf(caller), [{"name": "array"}])
        self.assertEqual(self.array.logins, 2)

    def test_expired_by_401(self) -> None:
        """401 is taken for the end of a session, too."""
        self.items()
        self.array.say("/api/2.9/arrays", (401, {}))
        self.assertEqual(self.items(), [{"name": "array"}])
        self.assertEqual(self.array.logins, 2)

    def test_forbidden(self) -> None:
        """What a new session is refused as well is forbidden: the first refusal is told."""
        for status in (401, 403):
            self.array.say(
                "/api/2.9/arrays",
                (status, {"errors": [{"context": "arrays", "message": "No permission."}]}),
                (403, {"errors": [{"message": "another"}]}),
            )
            error = self.error(ArrayError)
            self.assertEqual(error.code, status)
            self.assertIn("arrays: No permission.", error.message)
            self.assertIn("volume fb: the array https://array.example.com", error.message)
        self.assertEqual(self.array.logins, 3)

    def test_renewed_in_vain(self) -> None:
        """An error of another kind that a new session gets is the one to be told."""
        self.items()
        self.array.say("/api/2.9/arrays", (403, {}), (500, {"errors": [{"message": "broken"}]}))
        self.assertIn("broken", self.error(ArrayError).message)

    def test_bad_token(self) -> None:
        """A token that the array does not take is told with its key, each time anew."""
        self.rest = self.make(token="T-bad")
        for logins in (1, 2):
            error = self.error(ArrayError)
            self.assertIn("purity_api_token", error.message)
            self.assertIn("Invalid API token.", error.message)
            self.assertEqual(self.array.logins, logins)

    def test_withdrawn_token(self) -> None:
        """A token that is withdrawn while a session lasts is told when that has ended."""
        self.items()
        self.array.expire()
        self.array.say("/api/login", (401, {"errors": [{"message": "Invalid API token."}]}))
        self.assertIn("purity_api_token", self.error(ArrayError).message)

    def test_no_session(self) -> None:
        """A login that is answered without a token is none."""
        self.array.say("/api/login", (200, {"username": "pureuser"}))
        self.assertIn("purity_endpoint", self.error(BackendFailure).message)

    def test_login_fails(self) -> None:
        """All who wait for a login that fails are told, and the next one tries again."""
        self.array.say("/api/login", None)
        callers = [self.begin() for _ in range(3)]
        [login] = self.array.held
        login.setResponseCode(500)
        login.finish()
        self.treq.flush()
        for caller in callers:
            self.failureResultOf(caller, ArrayError)
        self.assertEqual(self.items(), [{"name": "array"}])

    def test_caller_gives_up(self) -> None:
        """A login goes on for the others when the one who has begun it gives up."""
        self.array.say("/api/login", None)
        first, second = self.begin(), self.begin()
        first.cancel()
        self.failureResultOf(first)
        [login] = self.array.held
        login.setHeader(b"x-auth-token", b"later")
        self.array.sessions.append("later")
        login.finish()
        self.treq.flush()
        self.assertEqual(self.successResultOf(second), [{"name": "array"}])

    def test_stop(self) -> None:
        """At the end the session is closed, and the connections."""
        closed = []
        self.rest = RESTClient(
            self.clock, self.treq, "fb", URL, TOKEN, None, 15.0, lambda: succeed(closed.append(1))
        )
        self.items()
        result_of(self.rest.stop())
        self.assertEqual((self.array.asked[-1], self.array.sessions), ("POST /api/logout", []))
        self.assertEqual(closed, [1])

    def test_stop_without_session(self) -> None:
        """An array that was never asked is not asked to say good-bye."""
        result_of(self.rest.stop())
        self.assertEqual(self.array.asked, [])

    def test_stop_without_answer(self) -> None:
        """An array that does not answer holds nobody back at the end."""
        self.items()
        self.array.say("/api/logout", None)
        stopping = Deferred.fromCoroutine(self.rest.stop())
        self.assertNoResult(stopping)
        self.clock.advance(client.FAREWELL)
        self.successResultOf(stopping)
        self.assertEqual(self.clock.getDelayedCalls(), [])


class PatienceTests(ClientCase):
    BUSY = (
        (429, {"message": "API rate limit exceeded"}),
        (503, b"<html>"),
        (500, {"errors": [{"context": None, "message": "Server is busy"}]}),
    )

    def test_back_off(self) -> None:
        """A busy array is asked again after 1, 2, 4 seconds, whatever it says it with."""
        for busy in self.BUSY:
            self.array.say("/api/2.9/arrays", *[busy] * 3)
            asking = self.begin()
            for pause in (1.0, 2.0, 4.0):
                self.assertNoResult(asking)
                before = len(self.array.asked)
                self.clock.advance(pause - 0.01)
                self.assertEqual(len(self.array.asked), before)
                self.clock.advance(0.01)
                self.assertEqual(len(self.array.asked), before + 1)
            self.assertEqual(self.successResultOf(asking), [{"name": "array"}])

    def test_told(self) -> None:
        """An array that says how long to wait is waited for so long, but never asked in a rush."""
        for headers, pause in (
            ({"Retry-After": "7"}, 7.0),
            ({"RateLimit-Reset": "3"}, 3.0),
            ({"Retry-After": "2", "RateLimit-Reset": "9"}, 2.0),
            ({"Retry-After": "0"}, client.SHORTEST_PAUSE),
            ({"Retry-After": "Thu, 01 Jan 1970 01:00:05 GMT"}, 5.0),
            ({"Retry-After": "Thu, 01 Jan 1970 00:00:00 GMT"}, client.FIRST_PAUSE),
            ({"Retry-After": "Mon, 99 Nov 2026 00:00:00 GMT"}, client.FIRST_PAUSE),
            ({"Retry-After": "-1"}, client.FIRST_PAUSE),
        ):
            self.array.say("/api/2.9/arrays", (429, {}, headers))
            self.clock.advance(3600 - self.clock.seconds())
            asking = self.begin()
            self.clock.advance(pause * 0.99)
            self.assertNoResult(asking)
            self.clock.advance(pause * 0.02)
            self.successResultOf(asking)

    def test_too_long(self) -> None:
        """One that wants more time than there is fails at once, with the time and its message."""
        self.array.say(
            "/api/2.9/arrays", (429, {"message": "API rate limit exceeded"}, {"Retry-After": "60"})
        )
        error = self.error(VolumeUnavailable)
        self.assertIn("API rate limit exceeded", error.message)
        self.assertEqual(error.headers["Retry-After"], "60")

    def test_always_busy(self) -> None:
        """One that stays busy fails within the deadline."""
        self.array.say("/api/2.9/arrays", *[self.BUSY[1]] * 20)
        asking = self.begin()
        self.clock.pump([0.5] * 30)
        self.assertIn("busy", str(self.failureResultOf(asking, VolumeUnavailable).value))
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_busy_login(self) -> None:
        """A login waits, too."""
        self.array.say("/api/login", (503, b""))
        asking = self.begin()
        self.clock.advance(1)
        self.assertEqual(self.successResultOf(asking), [{"name": "array"}])

    def test_deadline(self) -> None:
        """An array that does not answer costs no more than the deadline, at any step."""
        for path in ("/api/api_version", "/api/login", "/api/2.9/arrays"):
            self.array.say(path, None)
            asking = self.begin()
            self.clock.advance(14.9)
            self.assertNoResult(asking)
            self.clock.advance(0.2)
            failure = self.failureResultOf(asking, VolumeUnavailable)
            self.assertIn("does not answer within 15 seconds", str(failure.value))
            self.assertEqual(self.clock.getDelayedCalls(), [])
            self.treq.flush()

    def test_half_an_answer(self) -> None:
        """The deadline is for the whole answer; the connection is given up with it."""
        self.array.say("/api/2.9/arrays", None)
        asking = self.begin()
        [request] = self.array.held
        request.setHeader(b"Content-Length", b"1000")
        request.write(b'{"items": [')
        self.treq.flush()
        self.clock.advance(15)
        self.failureResultOf(asking, VolumeUnavailable)
        lost = request.notifyFinish()
        self.treq.flush()
        self.failureResultOf(lost)

    def test_turns(self) -> None:
        """A few requests at most are under way; the rest wait, within their deadline."""
        self.items()
        self.array.say("/api/2.9/arrays", *[None] * 10)
        callers = [self.begin() for _ in range(10)]
        self.assertEqual(len(self.array.held), client.CONNECTIONS)
        self.clock.advance(15)
        for caller in callers:
            self.failureResultOf(caller, VolumeUnavailable)
        self.treq.flush()
        self.assertEqual(self.items(), [{"name": "array"}])


class PageTests(ClientCase):
    def check(self, version: str, page: Callable[[list[Any], Any], Any], parameter: str) -> None:
        self.rest = self.make(version=version)
        self.array.say(
            f"/api/{version}/blades",
            (200, page([1, 2], "next+/=1")),
            (200, page([3], "next2")),
            (200, page([4], None)),
        )
        self.assertEqual(self.items("blades", filter="x"), [1, 2, 3, 4])
        self.assertEqual(
            self.array.queries[-3:],
            [
                {"filter": "x"},
                {"filter": "x", parameter: "next+/=1"},
                {"filter": "x", parameter: "next2"},
            ],
        )

    def test_v1(self) -> None:
        """Pages of 1.x have their token in a table of their own."""
        self.check(
            "1.8",
            lambda items, token: {
                "items": items,
                "pagination_info": {"continuation_token": token, "total_item_count": 4},
            },
            "token",
        )

    def test_v2(self) -> None:
        """Pages of 2.x have it at the top."""
        self.check(
            "2.0",
            lambda items, token: {"items": items, "continuation_token": token},
            "continuation_token",
        )

    def test_endless(self) -> None:
        """An array that goes on for ever is not followed."""
        self.patch(client, "_MIN_PAGE", client.MAX_ANSWER // 5)
        for token in (lambda number: "same", lambda number: f"token{number}", lambda number: 7):
            self.array.say(
                "/api/2.9/blades",
                *[(200, {"items": [], "continuation_token": token(page)}) for page in range(9)],
            )
            self.assertIn("pages", self.error(BackendFailure, "blades").message)
            self.array.replies.clear()

    def test_many_large(self) -> None:
        """All pages together are no larger than an answer may be."""
        large = {"items": ["x" * (client.MAX_ANSWER // 3)]}
        pages = [(200, {**large, "continuation_token": str(number)}) for number in range(5)]
        self.array.say("/api/2.9/blades", *pages)
        self.assertIn("pages", self.error(BackendFailure, "blades").message)
        self.assertEqual(self.array.asked.count("GET /api/2.9/blades"), 3)

    def test_deadline(self) -> None:
        """The deadline is for all pages together."""
        self.array.say("/api/2.9/blades", None, None)
        asking = self.begin("blades")
        self.clock.advance(10)
        [request] = self.array.held
        request.write(b'{"items": [1], "continuation_token": "next"}')
        request.finish()
        self.treq.flush()
        self.assertEqual(len(self.array.held), 2)
        self.clock.advance(5)
        self.failureResultOf(asking, VolumeUnavailable)

    def test_session_ends_between_pages(self) -> None:
        """A session that ends between two pages is renewed."""
        self.array.say(
            "/api/2.9/blades",
            (200, {"items": [1], "continuation_token": "next"}),
            (403, {}),
            (200, {"items": [2]}),
        )
        self.assertEqual(self.items("blades"), [1, 2])


class ErrorTests(ClientCase):
    def test_messages(self) -> None:
        """The array's own words are told, whoever of it says them and however."""
        for status, body, said in (
            (400, {"errors": [{"code": 400, "context": "fs1", "message": "No."}]}, "fs1: No."),
            (400, {"errors": [{"context": None, "message": "a"}, {"message": "b"}]}, "a; b"),
            (404, {"message": "no Route matched"}, "no Route matched"),
            (500, b"<html>Internal error</html>", "HTTP status 500"),
            (502, b"", "HTTP status 502"),
            (400, {"errors": "x"}, "HTTP status 400"),
            (400, {"errors": [7, None, {"message": 8}]}, "HTTP status 400"),
            (400, {"errors": 5}, "HTTP status 400"),
            (500, {"errors": True}, "HTTP status 500"),
            (400, {"message": "half \ud800 a character"}, "half   a character"),
            (400, [1], "HTTP status 400"),
            (301, b"", "HTTP status 301"),
            (400, {"message": "two\nlines\x1b[31m"}, "two lines [31m"),
        ):
            self.array.say("/api/2.9/arrays", (status, body, {"Location": "https://elsewhere/"}))
            error = self.error(ArrayError)
            self.assertEqual(error.code, status)
            self.assertTrue(error.message.endswith(f"refuses GET arrays: {said}"), error.message)
            self.assertTrue(error.message.startswith(f"volume fb: the array {URL} "))
        self.assertNotIn("elsewhere", str(self.array.asked))

    def test_long_message(self) -> None:
        """A message is told as far as anybody would read it."""
        self.array.say("/api/2.9/arrays", (400, {"message": "long " * 10_000}))
        self.assertLess(len(self.error(ArrayError).message), 1000)

    def test_garbage(self) -> None:
        """What is not the JSON that it should be is told as such."""
        for body in (b"<html>", b"", b"[]", b"7", b"\xff\xfe", b"[" * 100_000, b'{"items": [1, '):
            self.array.say("/api/2.9/arrays", (200, body))
            self.assertIn("JSON", self.error(BackendFailure).message)
        for body in ({}, {"items": None}, {"items": {"a": 1}}, {"items": "text"}):
            self.array.say("/api/2.9/arrays", (200, body))
            self.assertIn("without items", self.error(BackendFailure).message)

    def test_too_large(self) -> None:
        """An answer without end is not read to its end."""
        self.array.say("/api/2.9/arrays", (200, b" " * (client.MAX_ANSWER + 1)))
        self.assertIn("more than", self.error(BackendFailure).message)
        self.assertEqual(self.items(), [{"name": "array"}])

    def test_cut(self) -> None:
        """An answer that is cut off is told as such."""
        self.array.say("/api/2.9/arrays", None)
        asking = self.begin()
        [request] = self.array.held
        request.setHeader(b"Content-Length", b"1000")
        request.write(b'{"items": [')
        request.loseConnection()
        self.treq.flush()
        error = self.failureResultOf(asking, VolumeUnavailable).value
        self.assertIn("before its answer was complete", str(error))

    def test_unreachable(self) -> None:
        """An array that cannot be reached is told with the reason."""

        class Nowhere:
            def __init__(self, error: Exception) -> None:
                self.error = error

            def request(self, *args: Any, **kwargs: Any) -> Deferred[Any]:
                return fail(Failure(self.error))

        for error, why in (
            (ConnectionRefusedError("refused"), "refused"),
            (DNSLookupError("no such host"), "no such host"),
        ):
            self.rest = self.make(http=Nowhere(error))
            told = self.error(VolumeUnavailable).message
            self.assertIn("cannot be reached", told)
            self.assertIn(why, told)

    def test_secrets(self) -> None:
        """Tokens are in no message, no repr and no line of the log, even if the array says them."""
        self.items()
        session = self.array.sessions[-1]
        self.array.say("/api/2.9/arrays", (400, {"message": f"bad: {TOKEN} {session}"}))
        said = [self.error(ArrayError).message, repr(self.rest), repr(vars(self.rest)["_session"])]
        self.array.say("/api/logout", (500, {"message": TOKEN}))
        result_of(self.rest.stop())
        said.append(str(self.events))
        self.array.say("/api/2.9/arrays", (400, {"message": "x" * 490 + TOKEN}))
        self.assertNotIn(TOKEN[:5], self.error(ArrayError).message)
        self.assertIn("bad: *** ***", said[0])
        for text in said:
            self.assertNotIn(TOKEN, text)
            self.assertNotIn(session, text)


class ChangeTests(ClientCase):
    def test_change(self) -> None:
        """A change names what it changes in the query, and the new values in the body."""
        result_of(self.rest.change("file-systems", {"names": "fs"}, {"provisioned": ""}))
        self.assertEqual(self.array.asked[-1], "PATCH /api/2.9/file-systems")
        self.assertEqual(self.array.queries[-1], {"names": "fs"})
        self.assertEqual(json.loads(self.array.bodies[-1]), {"provisioned": ""})

    def test_without_answer(self) -> None:
        """A change that is confirmed by nothing but the status is one."""
        self.array.say("/api/2.9/file-systems", (200, b""))
        result_of(self.rest.change("file-systems", {}, {}))

    def test_refused(self) -> None:
        """A change that the array refuses is told with its status and message."""
        self.array.say("/api/2.9/file-systems", (400, {"errors": [{"message": "No."}]}))
        work = self.rest.change("file-systems", {}, {})
        error = self.assertRaises(ArrayError, result_of, work)
        self.assertEqual(error.code, 400)
        self.assertIn("refuses PATCH file-systems: No.", error.message)

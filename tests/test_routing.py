"""
Tests for :mod:`storageproxy.api.routing`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from klein import Klein
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.task import Clock
from twisted.logger import formatEvent
from twisted.trial.unittest import SynchronousTestCase

from storageproxy.api.routing import Front, answer_json, read_json
from storageproxy.errors import BackendFailure, FileNotFound, VolumeUnavailable
from storageproxy.transfer.site import StreamingSite
from storageproxy.transfer.uploads import Interrupted
from tests.harness import Answer, Events, Wire


class API:
    """Two routes that do what a test says."""

    app = Klein()

    def __init__(self) -> None:
        self.then: Callable[[Any], Any] = lambda request: b"{}"

    @app.route("/route", methods=["GET", "POST"])
    def route(self, request: Any) -> Any:
        return self.then(request)


class RoutingCase(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock = Clock()
        self.api = API()
        self.site = StreamingSite(Front(self.api.app), self.clock)
        self.wire = Wire(self.site, self.clock)
        self.events = Events(self)

    def ask(self, method: str = "GET", path: str = "/route", body: bytes | None = None) -> Answer:
        self.wire.request(method, path, {"X-Request-ID": "the-id"}, body)
        return self.wire.answers(method)[-1]

    def raising(self, error: Exception) -> None:
        def route(request: Any) -> None:
            raise error

        self.api.then = route


class ErrorTests(RoutingCase):
    def test_known_error(self) -> None:
        """An error that a route raises is told as a problem document."""
        self.raising(FileNotFound("there is no x", paths=["x"]))
        answer = self.ask()
        self.assertEqual(answer.status, 404)
        self.assertEqual(answer.headers["content-type"], "application/problem+json; charset=utf-8")
        self.assertEqual(
            answer.json(),
            {
                "type": "https://api.backend.ai/probs/storage/file-not-found",
                "title": "File not found",
                "status": 404,
                "msg": "there is no x",
                "error_code": "vfolder_read_file-not-found",
                "paths": ["x"],
            },
        )

    def test_headers_of_errors(self) -> None:
        """Headers that belong to an error are in its answer."""
        self.raising(VolumeUnavailable(retry_after=7))
        answer = self.ask()
        self.assertEqual((answer.status, answer.headers["retry-after"]), (503, "7"))

    def test_errors_of_ours_are_logged(self) -> None:
        """What an operator has to look at is in the log, with the id of its request."""
        self.raising(BackendFailure("volume local: Input/output error"))
        self.assertEqual(self.ask().status, 500)
        [event] = [event for event in self.events if event["log_level"].name == "error"]
        self.assertEqual(event["request_id"], "the-id")
        self.assertIn("Input/output error", formatEvent(event))

    def test_errors_of_clients_are_not(self) -> None:
        """A mistake of a client is a line of the access log and no more."""
        self.raising(FileNotFound())
        self.ask()
        levels = {event["log_level"].name for event in self.events}
        self.assertEqual(levels, {"info"})

    def test_unexpected_error(self) -> None:
        """A mistake of ours is a 500 that tells an id and no more, which the log explains."""
        self.raising(ZeroDivisionError("a detail"))
        answer = self.ask()
        self.assertEqual(answer.status, 500)
        self.assertEqual(answer.json()["incident"], "the-id")
        self.assertIn("the-id", answer.json()["msg"])
        self.assertNotIn(b"detail", answer.body)
        [failure] = self.flushLoggedErrors(ZeroDivisionError)
        self.assertEqual(str(failure.value), "a detail")
        self.assertFalse(self.wire.disconnecting)

    def test_error_in_mid_answer(self) -> None:
        """An answer that cannot be completed ends with its connection, not as if it were whole."""

        def route(request: Any) -> None:
            request.write(b"part")
            raise ZeroDivisionError

        self.api.then = route
        self.wire.request("GET", "/route")
        self.assertTrue(self.wire.aborted)
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)

    def test_interrupted(self) -> None:
        """A request that a newer one replaced is not answered at all."""
        self.raising(Interrupted())
        self.wire.request("GET", "/route")
        self.assertTrue(self.wire.aborted)
        self.assertEqual(self.wire.value(), b"")

    def test_client_gone(self) -> None:
        """When the client goes, its route is cancelled, and that is no error."""
        cancelled: list[bool] = []
        never: Deferred[bytes] = Deferred(lambda _: cancelled.append(True))
        self.api.then = lambda request: never
        self.wire.request("GET", "/route")
        self.wire.disconnect()
        self.assertEqual(cancelled, [True])
        self.assertEqual(self.flushLoggedErrors(CancelledError), [])
        self.assertEqual(self.site.active, set())


class PathTests(RoutingCase):
    def test_unknown(self) -> None:
        """An unknown path is a 404 in JSON."""
        for path in ("/nowhere", "/", "/route/", "/route//x"):
            answer = self.ask(path=path)
            self.assertEqual((path, answer.status), (path, 404))
            self.assertIn("msg", answer.json())

    def test_unknown_method(self) -> None:
        """An unknown method is a 405 in JSON that says which are known."""
        answer = self.ask("DELETE")
        self.assertEqual(answer.status, 405)
        self.assertEqual(answer.headers["allow"], "GET, HEAD, POST")
        self.assertIn("msg", answer.json())

    def test_no_utf8(self) -> None:
        """A path that is no UTF-8 is a 400 in JSON, and not Klein's page."""
        answer = self.ask(path="/%ff")
        self.assertEqual(answer.status, 400)
        self.assertIn("msg", answer.json())

    def test_no_utf8_with_a_body(self) -> None:
        """Such a path with a body is refused as well, and its connection goes on."""
        self.assertEqual(self.ask("POST", "/%ff", b"abc").status, 400)
        self.assertEqual(self.ask().status, 200)


class JSONTests(RoutingCase):
    def read(self, body: bytes | None) -> Answer:
        async def route(request: Any) -> bytes:
            found = await read_json(request, 1000)
            return answer_json(request, {"found": found}, 201)

        self.api.then = route
        return self.ask("POST", body=body)

    def test_there_and_back(self) -> None:
        """A JSON object comes in and goes out, in ASCII as the original writes it."""
        answer = self.read('{"é": [1, null]}'.encode())
        self.assertEqual(answer.status, 201)
        self.assertEqual(answer.headers["content-type"], "application/json; charset=utf-8")
        self.assertEqual(answer.headers["content-length"], str(len(answer.body)))
        self.assertEqual(answer.body, b'{"found": {"\\u00e9": [1, null]}}')

    def test_nothing(self) -> None:
        """No body is an empty object."""
        for body in (None, b""):
            self.assertEqual(self.read(body).json(), {"found": {}})

    def test_something_else(self) -> None:
        """What is no object is a 400."""
        for body in (b"[]", b"1", b"null", b"{", b"\xff", b"[" * 900, b'{"a": 1} x'):
            answer = self.read(body)
            self.assertEqual((body, answer.status), (body, 400))

    def test_too_large(self) -> None:
        """What is too large is a 413."""
        self.assertEqual(self.read(b" " * 1001).status, 413)

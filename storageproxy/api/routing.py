"""
What all routes have in common: parameters in, JSON out, and one answer for every error.

Klein matches the path; a route states what it needs, and raises errors of
:mod:`storageproxy.errors`. Nothing else in the daemon knows how an error looks on the wire.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from klein import Klein
from twisted.internet.defer import CancelledError, maybeDeferred
from twisted.logger import Logger
from twisted.python.failure import Failure
from twisted.web.resource import Resource
from twisted.web.server import NOT_DONE_YET
from werkzeug.exceptions import HTTPException

from storageproxy.errors import (
    InvalidParameters,
    MalformedRequest,
    MethodNotAllowed,
    NoSuchRoute,
    StorageProxyError,
)
from storageproxy.schema import Complaint, structure
from storageproxy.transfer.request import StreamingRequest, read_body
from storageproxy.transfer.uploads import Interrupted

T = TypeVar("T")

#: Bytes of a JSON body, as the original takes them.
MAX_JSON = 1024 * 1024

log = Logger()


def answer_json(
    request: StreamingRequest,
    document: Mapping[str, Any] | bytes,
    status: int = 200,
    media_type: str = "application/json",
) -> bytes:
    """
    Set status and headers of a JSON answer.

    :param document: it may be encoded already.
    :return: its body.
    """
    body = document if isinstance(document, bytes) else json.dumps(document).encode("ascii")
    request.setResponseCode(status)
    request.setHeader(b"Content-Type", f"{media_type}; charset=utf-8".encode("ascii"))
    request.setHeader(b"Content-Length", b"%d" % len(body))
    return body


def application() -> Klein:
    """
    An application that redirects nobody: with two slashes in the middle, a path is another one.
    """
    app = Klein()
    app.url_map.merge_slashes = False
    return app


async def read_json(request: StreamingRequest, limit: int = MAX_JSON) -> Mapping[str, Any]:
    """
    The JSON object in a request's body, whatever its content type says; none is an empty one.

    :raises MalformedRequest: when it is something else.
    """
    body = await read_body(request, limit)
    if not body:
        return {}
    try:
        found = json.loads(body)
    except (ValueError, RecursionError):
        raise MalformedRequest("the body of the request is not JSON") from None
    if not isinstance(found, dict):
        raise MalformedRequest("the body of the request is not a JSON object")
    return found


def parameters(table: Mapping[str, Any], cls: type[T]) -> T:
    """
    The parameters of a route.

    :raises InvalidParameters: naming each that is missing or wrong.
    """
    try:
        return structure(table, cls)
    except Complaint as error:
        raise InvalidParameters.of(error.nested()) from None


def answer_error(request: StreamingRequest, error: StorageProxyError) -> bytes:
    """Set status and headers of a problem document (RFC 9457), and return it."""
    if error.status >= 500:
        log.error(
            "{method} {route} is answered with {status}: {error}",
            method=request.method.decode("latin-1"),
            route=request.route,
            status=error.status,
            error=f"{error.message}; {error.remedy}" if error.remedy else error.message,
            request_id=request.request_id,
        )
    for name, value in error.headers.items():
        request.setHeader(name.encode("ascii"), value.encode("latin-1", "replace"))
    return answer_json(request, error.document(), error.status, "application/problem+json")


def translate(request: StreamingRequest, failure: Failure) -> bytes:
    """
    Answer whatever a route has raised.
    """
    error = failure.value
    if isinstance(error, CancelledError):
        # The client is gone, or else it must not take silence for success.
        request.abort()
        return b""
    if isinstance(error, Interrupted) or request.startedWriting:
        if not isinstance(error, Interrupted):
            log.failure("An answer was broken off", failure, request_id=request.request_id)
        request.abort()
        return b""
    if isinstance(error, HTTPException):
        error = from_router(error)
    if isinstance(error, StorageProxyError):
        return answer_error(request, error)
    log.failure("Incident {request_id}", failure, request_id=request.request_id)
    return answer_error(
        request,
        StorageProxyError(
            f"Internal server error; the log has it under {request.request_id}",
            incident=request.request_id,
        ),
    )


def from_router(error: HTTPException) -> StorageProxyError:
    """The error for a path or a method that no route has."""
    if error.code == 405:
        methods = sorted(set(getattr(error, "valid_methods", None) or ()))
        return MethodNotAllowed(headers={"Allow": ", ".join(methods)})
    return NoSuchRoute()


class Front(Resource):
    """
    What stands before an API: it has each request answered by the route that Klein has for it.

    Klein's own resource looks at much that no route of ours has, such as hosts, templates, and
    resources below a route, and takes a third of the time of a small request for it.

    :param app: the routes.
    :param failed: makes the answer when none of them does, or when one fails.
    :param prepare: called with each request first, to set headers that all answers have.
    """

    isLeaf = True

    def __init__(
        self,
        app: Klein,
        failed: Callable[[StreamingRequest, Failure], bytes] = translate,
        prepare: Callable[[StreamingRequest], None] = lambda _: None,
    ) -> None:
        super().__init__()
        self._app = app
        # All hosts have the same routes.
        self._routes = app.url_map.bind("")
        self._failed = failed
        self._prepare = prepare

    def render(self, request: Any) -> int:
        """Begin to answer."""
        self._prepare(request)
        answer = maybeDeferred(self._route, request)
        answer.addErrback(lambda failure: self._failed(request, failure))
        answer.addCallback(_write, request)
        answer.addErrback(_broken, request)
        request.notifyFinish().addErrback(lambda _: answer.cancel())
        return NOT_DONE_YET

    def _route(self, request: StreamingRequest) -> Any:
        try:
            path = b"/".join([b"", *(request.postpath or ())]).decode("utf-8")
        except UnicodeDecodeError:
            raise MalformedRequest("the path is not UTF-8") from None
        endpoint, values = self._routes.match(path, request.method.decode("latin-1"))
        return self._app.execute_endpoint(endpoint, request, **values)


def _write(body: bytes | None, request: StreamingRequest) -> None:
    if body:
        request.write(body)
    request.finish()


def _broken(failure: Failure, request: StreamingRequest) -> None:
    log.failure("An answer cannot be sent", failure, request_id=request.request_id)
    request.abort()

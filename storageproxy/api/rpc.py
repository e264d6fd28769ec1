"""
JSON RPC: routes for those who have the shared secret.
"""

from __future__ import annotations

import functools
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from attrs import frozen
from klein import Klein

from storageproxy.api.routing import MAX_JSON, answer_json, parameters, read_json
from storageproxy.beneath import File
from storageproxy.errors import MalformedRequest, StorageProxyError, from_os_error
from storageproxy.interfaces import IVolume
from storageproxy.transfer import bodies, downloads
from storageproxy.transfer.bodies import Body, Chunks
from storageproxy.transfer.request import StreamingRequest


@frozen
class Nothing:
    """No parameters."""


@frozen
class Answer:
    """A JSON answer with a status of its own."""

    document: Mapping[str, Any]
    status: int


@frozen
class Stream:
    """An answer with the contents of a file."""

    volume: IVolume
    file: File
    size: int


@frozen
class Pieces:
    """
    A JSON answer that is made while it is sent.

    :param head: its first bytes.
    :param rest: a generator of the others, which is run in the volume's threads.
    """

    volume: IVolume
    head: bytes
    rest: Chunks


def rpc(
    app: Klein, method: str, path: str, cls: type[Any], limit: int = MAX_JSON
) -> Callable[[Callable[[Any, Any], Awaitable[Any]]], Any]:
    """
    A route for managers: with the secret, and with parameters as a JSON body, on GET also.

    What the method returns is the answer: nothing (204), a JSON document (200), which may be
    encoded already, or an :class:`Answer`, :class:`Pieces` or :class:`Stream`.

    :param cls: the attrs class of the parameters; :class:`Nothing` takes no body at all.
    :param limit: bytes of the body.
    """

    def decorate(method_: Callable[[Any, Any], Awaitable[Any]]) -> Any:
        @functools.wraps(method_)
        async def endpoint(self: Any, request: StreamingRequest) -> bytes | None:
            request.route = path
            self.authorize(request)
            params = await _read(request, cls, limit)
            try:
                answer = await method_(self, params)
                return await _answer(request, answer)
            except OSError as error:
                raise _explain(error, params) from error

        routed = app.route(path, methods=[method])(endpoint)
        for rule in app.url_map.iter_rules():
            # werkzeug adds HEAD to each GET; an RPC has none, as in the original.
            if rule.rule == path and rule.methods is not None:
                rule.methods.discard("HEAD")
        return routed

    return decorate


async def _read(request: StreamingRequest, cls: type[Any], limit: int) -> Any:
    if cls is not Nothing:
        return parameters(await read_json(request, limit), cls)
    if request.body_length != 0:
        raise MalformedRequest("Malformed request (request body should be empty)")
    return cls()


async def _answer(request: StreamingRequest, answer: Any) -> bytes | None:
    if answer is None:
        request.setResponseCode(204)
        return None
    if isinstance(answer, Answer):
        return answer_json(request, answer.document, answer.status)
    if isinstance(answer, Pieces):
        request.setHeader(b"Content-Type", b"application/json; charset=utf-8")
        request.write(answer.head)
        rest = Body(None, (lambda _: answer.rest,))
        await downloads.send(request, answer.volume.threads, rest)
        return None
    if not isinstance(answer, Stream):
        return answer_json(request, answer)
    request.setHeader(b"Content-Type", b"application/octet-stream")
    try:
        body = bodies.whole(answer.file, answer.size)
        await downloads.send(request, answer.volume.threads, body)
    finally:
        answer.volume.threads.clean_up(answer.file.close)
    return None


def _explain(error: OSError, params: Any) -> StorageProxyError:
    names = ("relpath", "src_relpath", "dst_relpath", "subpath")
    paths = [value for name in names if isinstance(value := getattr(params, name, None), str)]
    return from_os_error(error, getattr(params, "volume", None) or params.src_volume, paths)

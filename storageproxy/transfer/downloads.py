"""
Downloads: the body of an answer, by the producer that sends it fastest.
"""

from __future__ import annotations

from socket import socket
from typing import Any
from urllib.parse import quote

from twisted.internet.defer import CancelledError
from twisted.internet.interfaces import ISystemHandle
from twisted.logger import Logger

from storageproxy.errors import StorageProxyError
from storageproxy.interfaces import IThreads
from storageproxy.transfer.bodies import Body, Changed
from storageproxy.transfer.producers import KernelProducer, ThreadedProducer
from storageproxy.transfer.request import StreamingRequest

#: Bytes up to which an answer that is in memory anyway is written in one piece with its headers.
SMALL = 64 * 1024

log = Logger()


def content_disposition(name: str) -> str:
    """
    The header that names a download, in the original's spelling (RFC 6266, RFC 8187).

    Bytes that are no UTF-8, and characters that could end the header or the quotes, are escaped or
    left out.
    """
    ascii_name = "".join(
        character for character in name if " " <= character <= "~" and character != "\\"
    ).replace('"', r"\"")
    encoded = quote(name.encode("utf-8", "surrogateescape"), safe="")
    return f"attachment;filename=\"{ascii_name}\"; filename*=UTF-8''{encoded}"


async def send(request: StreamingRequest, threads: IThreads, body: Body) -> None:
    """
    Send the bytes of an answer, whose headers are set.

    Nothing can be taken back once it is written: an answer that cannot be completed ends with the
    connection, so that no client takes a part for the whole.
    """
    if body.length is None:
        # Without a length it goes out in chunks of HTTP, which the request makes.
        producer: type[KernelProducer | ThreadedProducer] = ThreadedProducer
    else:
        request.setHeader(b"Content-Length", b"%d" % body.length)
        if request.method == b"HEAD" or not body.length:
            return
        at_once = body.cached() if body.length <= SMALL else None
        if at_once is not None:
            request.write(at_once)
            return
        producer = KernelProducer if _is_plain(request.transport) else ThreadedProducer
    try:
        await producer(request, threads, body).start()
    except CancelledError:
        raise
    except (Changed, OSError, StorageProxyError) as error:
        log.warn("A download was broken off: {error!r}", error=error, request_id=request.request_id)
        request.abort()
    except Exception:
        log.failure("A download was broken off", request_id=request.request_id)
        request.abort()


def _is_plain(transport: Any) -> bool:
    """Whether a client gets just what is sent on the transport's handle; with TLS he does not."""
    return ISystemHandle.providedBy(transport) and isinstance(transport.getHandle(), socket)

"""
Clients that upload a file, whatever becomes of the daemons meanwhile.
"""

from __future__ import annotations

import asyncio
import io

import aiohttp
from aiotusclient.client import TusClient as SDKTusClient
from aiotusclient.exceptions import TusUploadFailed as SDKUploadFailed
from tusclient.client import TusClient
from yarl import URL

from tests.functional.clients.case import MIB

#: How often they come back.
TRIES = 40
#: Bytes of one PATCH.
CHUNK = 15 * MIB


def upload_by_tuspy(url: str, content: bytes) -> None:
    """tuspy, all in one PATCH; it asks for the offset and goes on by itself."""
    stream = io.BytesIO(content)
    TusClient("").uploader(file_stream=stream, url=url, retries=TRIES, retry_delay=0.2).upload()


def upload_by_sdk(url: str, content: bytes) -> None:
    """The uploader of Backend.AI's SDK, for which its caller asks for the offset."""
    asyncio.run(_upload_by_sdk(url, content))


async def _upload_by_sdk(url: str, content: bytes) -> None:
    for _ in range(TRIES):
        try:
            offset = await _offset(url)
            if offset == len(content):
                return
            uploader = SDKTusClient().async_uploader(
                file_stream=io.BytesIO(content),
                url=URL(url),
                upload_checksum=False,
                chunk_size=CHUNK,
                retries=0,
            )
            uploader.offset = offset
            await uploader.upload()
        except (SDKUploadFailed, aiohttp.ClientError):
            await asyncio.sleep(0.2)  # fault: a client tries again
    raise RuntimeError(f"an upload has failed {TRIES} times")


async def _offset(url: str) -> int:
    async with aiohttp.ClientSession(raise_for_status=True) as client:
        async with client.head(url, headers={"Tus-Resumable": "1.0.0"}) as answer:
            return int(answer.headers["Upload-Offset"])

"""
Uploads by tuspy and by the uploader of Backend.AI's SDK, and downloads as the SDK resumes them.
"""

from __future__ import annotations

import asyncio
import io
import os
from collections.abc import Callable, Coroutine
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
from aiotusclient.client import TusClient as SDKTusClient
from aiotusclient.exceptions import TusUploadFailed as SDKUploadFailed
from tusclient.client import TusClient
from tusclient.exceptions import TusCommunicationError, TusUploadFailed
from tusclient.storage.filestorage import FileStorage
from yarl import URL

from tests.functional.clients.case import MIB, ClientCase, Session
from tests.functional.cutter import Cutter, Fault, Kind, Way

#: How much one PATCH carries (the SDK sends 16 MiB, the web UI 15).
SDK_CHUNK = 15 * MIB
#: How much the SDK reads of a download at once.
SDK_READ = 16 * MIB
SDK_RETRIES = 20


class TuspyTests(ClientCase):
    """tuspy 1.1.0, the tus project's own client for Python."""

    def uploader(self, source: Path, url: str | None, endpoint: str = "", **options: Any) -> Any:
        """An uploader for a session's URL, or one that knows only an endpoint."""
        options = {"retries": 0, "retry_delay": 0, **options}
        return TusClient(endpoint).uploader(str(source), url=url, **options)

    def cut_upload(self, cutter: Cutter, source: Path, session: Session, **options: Any) -> None:
        """Start an upload which the proxy breaks off."""
        uploader = self.uploader(source, cutter.url(session.url), **options)
        self.assertRaises(TusUploadFailed, uploader.upload)
        self.assertEqual(cutter.struck, 1)
        self.assertFalse(session.target.exists())

    def test_given_url(self) -> None:
        """With the URL of a session, in one PATCH."""
        source = self.source(20 * MIB)
        session = self.session(20 * MIB)
        uploader = self.uploader(source, session.url)
        self.assertEqual(uploader.offset, 0)
        uploader.upload()
        self.assertEqual(uploader.offset, 20 * MIB)
        self.assert_identical(session.target, source)
        self.assert_nothing_staged()

    def test_chunks(self) -> None:
        """In chunks; each answer tells the offset."""
        source = self.source(5 * MIB + 12345)
        session = self.session(5 * MIB + 12345)
        uploader = self.uploader(source, session.url, chunk_size=MIB)
        offsets = []
        while uploader.offset < source.stat().st_size:
            uploader.upload_chunk()
            offsets.append(uploader.offset)
        self.assertEqual(offsets, [*(n * MIB for n in range(1, 6)), 5 * MIB + 12345])
        self.assert_identical(session.target, source)

    def test_endpoint(self) -> None:
        """With an endpoint only: the session is made by POST, the Location is usable."""
        source = self.source(6 * MIB)
        session = self.session(6 * MIB)
        uploader = self.uploader(source, None, session.endpoint, metadata={"filename": "a b"})
        uploader.upload()
        self.assertEqual(uploader.offset, 6 * MIB)
        self.assert_identical(session.target, source)
        self.assert_nothing_staged()

    def test_creation_twice(self) -> None:
        """A second creation with the same token is the same session, and loses nothing of it."""
        source = self.source(6 * MIB)
        session = self.session(6 * MIB)
        first = self.uploader(source, None, session.endpoint, chunk_size=2 * MIB)
        first.upload_chunk()
        url = self.uploader(source, None, session.endpoint).create_url()
        second = self.uploader(source, url)
        self.assertEqual(second.offset, 2 * MIB)
        second.upload()
        self.assert_identical(session.target, source)

    def test_stored_url(self) -> None:
        """A client that keeps the URL in a file of its own resumes where it was."""
        source = self.source(8 * MIB)
        session = self.session(8 * MIB)
        storage = FileStorage(str(self.work / "urls.json"))
        self.addCleanup(storage.close)
        key = self.uploader(source, session.url)._get_fingerprint()
        storage.set_item(key, session.url)
        options: dict[str, Any] = {
            "store_url": True,
            "url_storage": storage,
            "chunk_size": 3 * MIB,
        }
        self.uploader(source, None, session.endpoint, **options).upload_chunk()
        again = self.uploader(source, None, session.endpoint, **options)
        self.assertEqual(again.offset, 3 * MIB)
        again.upload()
        self.assert_identical(session.target, source)

    def test_checksums(self) -> None:
        """With a SHA-1 of each chunk."""
        source = self.source(5 * MIB)
        session = self.session(5 * MIB)
        self.uploader(source, session.url, chunk_size=2 * MIB, upload_checksum=True).upload()
        self.assert_identical(session.target, source)

    def test_asynchronous(self) -> None:
        """Its asyncio variant."""
        source = self.source(9 * MIB)
        session = self.session(9 * MIB)

        async def upload() -> None:
            client = TusClient(session.endpoint)
            await client.async_uploader(str(source), chunk_size=4 * MIB).upload()

        asyncio.run(upload())
        self.assert_identical(session.target, source)

    def test_abort_and_resume(self) -> None:
        """Cut in the middle of the only PATCH; a new client goes on from what was stored."""
        cutter = self.cutter(Fault(11 * MIB))
        source = self.source(32 * MIB)
        session = self.session(32 * MIB)
        self.cut_upload(cutter, source, session)
        uploader = self.uploader(source, cutter.url(session.url))
        self.assertGreater(uploader.offset, 0)
        self.assertLessEqual(uploader.offset, 11 * MIB)
        uploader.upload()
        self.assert_identical(session.target, source)
        self.assert_nothing_staged()

    def test_ordinary_end(self) -> None:
        """A connection that ends in mid-body without a reset: all that arrived is kept."""
        cutter = self.cutter(Fault(5 * MIB, kind=Kind.CLOSE))
        source = self.source(12 * MIB)
        session = self.session(12 * MIB)
        self.cut_upload(cutter, source, session)
        uploader = self.uploader(source, session.url)
        # What passed the proxy is the body and the heads of one HEAD and one PATCH.
        self.assertGreater(uploader.offset, 5 * MIB - 8192)
        self.assertLess(uploader.offset, 5 * MIB)
        uploader.upload()
        self.assert_identical(session.target, source)

    def test_checksummed_chunk_is_cut(self) -> None:
        """Of a chunk with a checksum nothing counts until all of it is there."""
        cutter = self.cutter(Fault(5 * MIB))
        source = self.source(8 * MIB)
        session = self.session(8 * MIB)
        self.cut_upload(cutter, source, session, chunk_size=2 * MIB, upload_checksum=True)
        uploader = self.uploader(source, session.url, chunk_size=2 * MIB, upload_checksum=True)
        self.assertEqual(uploader.offset % (2 * MIB), 0)
        uploader.upload()
        self.assert_identical(session.target, source)

    def test_six_cuts(self) -> None:
        """Its own retries, at once, through a proxy that cuts six times."""
        faults = [Fault(size) for size in (900_001, 3 * MIB, 2_000_000, 4 * MIB, 70_000, 5 * MIB)]
        cutter = self.cutter(*faults)
        source = self.source(24 * MIB)
        session = self.session(24 * MIB)
        self.uploader(source, cutter.url(session.url), retries=10).upload()
        self.assertEqual(cutter.struck, 6)
        self.assert_identical(session.target, source)

    def test_stranded(self) -> None:
        """The daemon still holds the old connection for alive: the new one takes over."""
        cutter = self.cutter(Fault(7 * MIB, kind=Kind.STRAND), Fault(4 * MIB, kind=Kind.STRAND))
        source = self.source(20 * MIB)
        session = self.session(20 * MIB)
        self.uploader(source, cutter.url(session.url), retries=10).upload()
        self.assertEqual(cutter.struck, 2)
        self.assert_identical(session.target, source)

    def test_late_bytes(self) -> None:
        """Bytes of the old connection arrive after the new one was told the offset."""
        cutter = self.cutter(Fault(7 * MIB, kind=Kind.LATE), Fault(4 * MIB, kind=Kind.LATE))
        source = self.source(20 * MIB)
        session = self.session(20 * MIB)
        self.uploader(source, cutter.url(session.url), retries=10).upload()
        self.assertEqual(cutter.struck, 2)
        self.assert_identical(session.target, source)

    def test_lost_last_answer(self) -> None:
        """The last 204 is lost: the upload is complete all the same, and says so."""
        size = 6 * MIB
        cutter = self.cutter(swallow=b"HTTP/1.1 204 .*Upload-Offset: %d\r" % size)
        source = self.source(size)
        session = self.session(size)
        failing = self.uploader(source, cutter.url(session.url), chunk_size=2 * MIB)
        self.assertRaises(TusUploadFailed, failing.upload)
        self.assertEqual(cutter.swallowed, 1)
        self.assert_identical(session.target, source)
        uploader = self.uploader(source, cutter.url(session.url))
        self.assertEqual(uploader.offset, size)
        uploader.upload()
        self.assertIsNone(uploader.request)
        self.assert_identical(session.target, source)

    def test_lost_creation_answer(self) -> None:
        """The 201 is lost: the client asks again and gets the same session."""
        cutter = self.cutter(swallow=b"HTTP/1.1 201 ")
        source = self.source(2 * MIB)
        session = self.session(2 * MIB)
        uploader = self.uploader(source, None, cutter.url(session.endpoint))
        self.assertRaises(TusCommunicationError, uploader.upload)
        self.assertEqual(cutter.swallowed, 1)
        uploader.upload()
        self.assert_identical(session.target, source)

    def test_empty(self) -> None:
        """Of an empty file only a HEAD is sent."""
        source = self.source(0)
        session = self.session(0)
        uploader = self.uploader(source, session.url)
        self.assertEqual(uploader.offset, 0)
        uploader.upload()
        self.assertIsNone(uploader.request)
        self.assert_identical(session.target, source)
        self.assert_nothing_staged()

    def test_empty_endpoint(self) -> None:
        """Of an empty file only a POST is sent."""
        source = self.source(0)
        session = self.session(0)
        self.uploader(source, None, session.endpoint).upload()
        self.assert_identical(session.target, source)
        self.assert_nothing_staged()


class SDKUploadTests(ClientCase):
    """backend-ai-aiotusclient 0.1.4, as the SDK calls it."""

    async def _upload(self, source: Path, url: str, offset: int) -> None:
        with source.open("rb") as stream:
            uploader = SDKTusClient().async_uploader(
                file_stream=stream,
                url=URL(url),
                upload_checksum=False,
                chunk_size=SDK_CHUNK,
                retries=0,
            )
            uploader.offset = offset
            await uploader.upload()

    def upload(self, source: Path, url: str, offset: int = 0) -> None:
        """Upload a file as the SDK does, from an offset on."""
        self.run_quietly(self._upload(source, url, offset))

    def run_quietly(self, upload: Coroutine[Any, Any, None]) -> None:
        """Run an upload without what the uploader has to say to a terminal."""
        with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
            asyncio.run(upload)

    def offset(self, url: str) -> int:
        """
        The offset of a session.

        The uploader's own ``get_offset`` raises AttributeError for any answer, so who resumes with
        it asks for himself.
        """

        async def head() -> int:
            async with aiohttp.ClientSession() as client:
                async with client.head(url, headers={"Tus-Resumable": "1.0.0"}) as answer:
                    self.assertEqual(answer.status, 200)
                    return int(answer.headers["Upload-Offset"])

        return asyncio.run(head())

    def test_upload(self) -> None:
        """In chunks of 15 MiB with a rest."""
        source = self.source(40 * MIB + 1)
        session = self.session(40 * MIB + 1)
        self.upload(source, session.url)
        self.assert_identical(session.target, source)
        self.assert_nothing_staged()

    def test_destination_directory(self) -> None:
        """The ``dst_dir`` of later SDKs; its directories need not exist."""
        source = self.source(MIB)
        session = self.session(MIB, "uploaded.bin")
        url = URL(session.url)
        url = url.update_query({"dst_dir": "deep/er"})
        self.upload(source, str(url))
        self.assert_identical(self.folder / "deep" / "er" / "uploaded.bin", source)
        self.assertFalse(session.target.exists())

    def test_abort_and_resume(self) -> None:
        """Cut in the second chunk, and again after the first resume."""
        cutter = self.cutter(Fault(20 * MIB), Fault(8 * MIB))
        source = self.source(40 * MIB)
        session = self.session(40 * MIB)
        url = cutter.url(session.url)
        self.assertRaises(SDKUploadFailed, self.upload, source, url)
        first = self.offset(url)
        self.assertGreaterEqual(first, SDK_CHUNK)
        self.assertRaises(SDKUploadFailed, self.upload, source, url, first)
        second = self.offset(url)
        self.assertGreaterEqual(second, first)
        self.upload(source, url, second)
        self.assertEqual(cutter.struck, 2)
        self.assert_identical(session.target, source)
        self.assert_nothing_staged()

    def test_from_the_start_again(self) -> None:
        """A client that resumes at the wrong offset is refused, and has changed nothing."""
        cutter = self.cutter(Fault(20 * MIB))
        source = self.source(32 * MIB)
        session = self.session(32 * MIB)
        self.assertRaises(SDKUploadFailed, self.upload, source, cutter.url(session.url))
        before = self.offset(session.url)
        refused = self.assertRaises(SDKUploadFailed, self.upload, source, session.url)
        self.assertEqual(refused.status_code, 409)
        self.assertEqual(self.offset(session.url), before)
        self.upload(source, session.url, before)
        self.assert_identical(session.target, source)

    def test_lost_last_answer(self) -> None:
        """The last 204 is lost; the file is there, and HEAD says so."""
        cutter = self.cutter(swallow=b"HTTP/1.1 204 .*Upload-Offset: %d\r" % (16 * MIB))
        source = self.source(16 * MIB)
        session = self.session(16 * MIB)
        self.assertRaises(SDKUploadFailed, self.upload, source, cutter.url(session.url))
        self.assertEqual(cutter.swallowed, 1)
        self.assertEqual(self.offset(session.url), 16 * MIB)
        self.assert_identical(session.target, source)

    def test_empty(self) -> None:
        """For an empty file no request is sent at all: the session alone makes the file."""
        cutter = self.cutter()
        source = self.source(0)
        session = self.session(0, "new/empty.bin")
        self.upload(source, cutter.url(session.url))
        self.assertEqual(cutter.accepted, 0)
        self.assert_identical(session.target, source)
        self.assert_nothing_staged()

    def test_many_at_once(self) -> None:
        """Thirty small files at the same time."""
        sessions = [self.session(10_000 + n, f"many/{n}.bin") for n in range(30)]
        sources = [self.source(10_000 + n, f"{n}.bin") for n in range(30)]

        async def upload() -> None:
            uploads = (
                self._upload(source, session.url, 0)
                for source, session in zip(sources, sessions, strict=True)
            )
            await asyncio.gather(*uploads)

        self.run_quietly(upload())
        for source, session in zip(sources, sessions, strict=True):
            self.assert_identical(session.target, source)
        self.assert_nothing_staged()


@dataclass
class _Downloaded:
    """What happened in an SDK's download."""

    statuses: list[int] = field(default_factory=list)
    starts: list[int] = field(default_factory=list)


async def sdk_download(
    url: str, target: Path, between: Callable[[], None] = lambda: None
) -> _Downloaded:
    """
    Download as ``VFolder._download_file`` of backend.ai-client does since 22.09.

    :param between: called before each further try.
    """
    seen = _Downloaded()
    start = 0
    if_range: str | None = None
    for _ in range(SDK_RETRIES):
        headers: dict[str, str] = {}
        if if_range is not None:
            between()
            headers = {"If-Range": if_range, "Range": f"bytes={start}-"}
        try:
            async with aiohttp.ClientSession(headers=headers) as client:
                async with client.get(URL(url), ssl=False) as answer:
                    seen.statuses.append(answer.status)
                    if answer.status == 200:
                        mode, start = "wb", 0
                    elif answer.status == 206:
                        mode = "ab"
                    else:
                        continue
                    seen.starts.append(start)
                    int(answer.headers["Content-Length"])
                    if_range = answer.headers.get("Last-Modified")
                    with target.open(mode) as stream:
                        while chunk := await answer.content.read(SDK_READ):
                            start += len(chunk)
                            stream.write(chunk)
                    return seen
        except (aiohttp.ClientPayloadError, aiohttp.ClientConnectionError):
            continue
    raise RuntimeError(f"Downloading {target.name} failed: {seen}")


class SDKDownloadTests(ClientCase):
    """The downloads of Backend.AI's SDK."""

    def test_download(self) -> None:
        """A whole file."""
        stored = self.stored(20 * MIB)
        target = self.work / "downloaded.bin"
        url = self.daemon.download_url(self.vfid, "data.bin")
        seen = asyncio.run(sdk_download(url, target))
        self.assertEqual(seen.statuses, [200])
        self.assert_identical(target, stored)

    def test_empty(self) -> None:
        """An empty file has a Content-Length as well."""
        stored = self.stored(0)
        target = self.work / "downloaded.bin"
        url = self.daemon.download_url(self.vfid, "data.bin")
        seen = asyncio.run(sdk_download(url, target))
        self.assertEqual(seen.statuses, [200])
        self.assert_identical(target, stored)

    def test_resume(self) -> None:
        """Cut three times: each further try gets only the rest."""
        cutter = self.cutter(*(Fault(size * MIB, Way.DOWN) for size in (7, 9, 5)))
        stored = self.stored(40 * MIB)
        target = self.work / "downloaded.bin"
        url = cutter.url(self.daemon.download_url(self.vfid, "data.bin"))
        seen = asyncio.run(sdk_download(url, target))
        self.assertEqual(seen.statuses, [200, 206, 206, 206])
        self.assertEqual(seen.starts, sorted(seen.starts))
        self.assertEqual(cutter.struck, 3)
        self.assert_identical(target, stored)

    def test_changed_file(self) -> None:
        """A file that has changed since is sent from its start, never spliced."""
        cutter = self.cutter(Fault(7 * MIB, Way.DOWN))
        stored = self.stored(20 * MIB)
        os.utime(stored, ns=(10**18, 10**18))
        target = self.work / "downloaded.bin"
        url = cutter.url(self.daemon.download_url(self.vfid, "data.bin"))

        def change() -> None:
            content = stored.read_bytes()
            stored.write_bytes(content[::-1])

        seen = asyncio.run(sdk_download(url, target, change))
        self.assertEqual(seen.statuses, [200, 200])
        self.assert_identical(target, stored)

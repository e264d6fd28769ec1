"""
Uploads by tus-js-client, the uploader of Backend.AI's web UI, in three of its releases on Node.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.functional.clients.case import MIB, ClientCase
from tests.functional.cutter import Fault, Kind

CLIENTS = Path(__file__).parent / "clients"


@dataclass(frozen=True)
class Outcome:
    """
    What the driver says about an upload.

    :ivar requests: method, status and Upload-Offset of each request that was answered.
    :ivar errors: the errors that the client gave up with.
    :ivar aborted: how often the driver aborted the upload.
    :ivar done: whether the client reported success.
    :ivar terminated: whether the client reported that the upload was given up.
    """

    requests: list[tuple[str, int, str | None]]
    errors: list[str]
    aborted: int
    done: bool
    terminated: bool

    def methods(self) -> list[str]:
        """The methods of the answered requests, in their order."""
        return [method for method, _, _ in self.requests]


class TusJsTests:
    """What has to hold with every release."""

    client: str
    #: Whether the client has to be told the size of a file that it reads itself.
    needs_size = False
    #: Some seven tries in all, with next to nothing between them.
    retries = [0, 10, 20, 50, 100, 200, 500]

    def drive(self: Any, source: Path, **job: Any) -> Outcome:
        """Let the driver do one upload."""
        job = {"client": self.client, "file": str(source), **job}
        if self.needs_size:
            job["uploadSize"] = source.stat().st_size
        ended = self.execute("node", str(CLIENTS / "tus.mjs"), json.dumps(job))
        self.assertEqual(ended.returncode, 0, ended.stderr.decode())
        said = json.loads(ended.stdout)
        return Outcome(
            requests=[(method, status, offset) for method, status, offset in said["requests"]],
            errors=said["errors"],
            aborted=said["aborted"],
            done=said["done"],
            terminated=said["terminated"],
        )

    def assert_uploaded(self: Any, outcome: Outcome, source: Path, target: Path) -> None:
        """The client is content, and rightly so."""
        self.assertEqual(outcome.errors, [])
        self.assertTrue(outcome.done)
        self.assert_identical(target, source)
        self.assert_nothing_staged()

    def test_upload_url(self: Any) -> None:
        """With the URL of a session: one HEAD, one PATCH."""
        source = self.source(20 * MIB)
        session = self.session(20 * MIB)
        outcome = self.drive(source, uploadUrl=session.url)
        self.assert_uploaded(outcome, source, session.target)
        self.assertEqual(outcome.requests, [("HEAD", 200, "0"), ("PATCH", 204, str(20 * MIB))])

    def test_chunks(self: Any) -> None:
        """In chunks of 5 MiB with a rest, to a target whose parents do not exist."""
        source = self.source(17 * MIB + 1)
        session = self.session(17 * MIB + 1, "./some/folder/uploaded.bin")
        outcome = self.drive(source, uploadUrl=session.url, chunkSize=5 * MIB)
        self.assert_uploaded(outcome, source, session.target)
        offsets = [offset for method, _, offset in outcome.requests if method == "PATCH"]
        self.assertEqual(
            offsets, [str(size) for size in (5 * MIB, 10 * MIB, 15 * MIB, 17 * MIB + 1)]
        )

    def test_creation(self: Any) -> None:
        """With an endpoint only: the session is made by POST."""
        source = self.source(3 * MIB)
        session = self.session(3 * MIB)
        outcome = self.drive(source, endpoint=session.endpoint, chunkSize=MIB)
        self.assert_uploaded(outcome, source, session.target)
        self.assertEqual(outcome.requests[0][:2], ("POST", 201))
        self.assertEqual(outcome.methods(), ["POST", "PATCH", "PATCH", "PATCH"])

    def test_custom_headers(self: Any) -> None:
        """Headers of a page (custom ones and an origin) change nothing."""
        source = self.source(MIB)
        session = self.session(MIB)
        headers = {"X-Page": "files", "Origin": "http://page.test"}
        outcome = self.drive(source, uploadUrl=session.url, headers=headers)
        self.assert_uploaded(outcome, source, session.target)

    def test_abort_and_resume(self: Any) -> None:
        """Aborted in the middle of a chunk and started again at once."""
        source = self.source(40 * MIB)
        session = self.session(40 * MIB)
        outcome = self.drive(
            source, uploadUrl=session.url, abortAt=12 * MIB, retryDelays=self.retries
        )
        self.assert_uploaded(outcome, source, session.target)
        self.assertEqual(outcome.aborted, 1)
        heads = [offset for method, _, offset in outcome.requests if method == "HEAD"]
        self.assertEqual(len(heads), 2)
        self.assertGreater(int(heads[1]), 0)

    def test_six_cuts(self: Any) -> None:
        """Six resets at odd places; each try goes on from what was stored."""
        faults = [Fault(size) for size in (900_001, 3 * MIB, 2_000_000, 4 * MIB, 70_000, 5 * MIB)]
        cutter = self.cutter(*faults)
        source = self.source(24 * MIB)
        session = self.session(24 * MIB)
        outcome = self.drive(
            source,
            uploadUrl=cutter.url(session.url),
            chunkSize=2 * MIB,
            retryDelays=self.retries,
        )
        self.assert_uploaded(outcome, source, session.target)
        self.assertEqual(cutter.struck, 6)
        heads = [int(offset) for method, _, offset in outcome.requests if method == "HEAD"]
        self.assertEqual(len(heads), 7)
        self.assertEqual(heads, sorted(heads))

    def test_stranded(self: Any) -> None:
        """The old connections stay open and silent: the new ones take the upload over."""
        cutter = self.cutter(Fault(3 * MIB, kind=Kind.STRAND), Fault(4 * MIB, kind=Kind.STRAND))
        source = self.source(16 * MIB)
        session = self.session(16 * MIB)
        outcome = self.drive(source, uploadUrl=cutter.url(session.url), retryDelays=self.retries)
        self.assert_uploaded(outcome, source, session.target)
        self.assertEqual(cutter.struck, 2)

    def test_late_bytes(self: Any) -> None:
        """Bytes of the old connection that arrive after the HEAD are not stored twice."""
        cutter = self.cutter(Fault(3 * MIB, kind=Kind.LATE), Fault(4 * MIB, kind=Kind.LATE))
        source = self.source(16 * MIB)
        session = self.session(16 * MIB)
        outcome = self.drive(
            source,
            uploadUrl=cutter.url(session.url),
            chunkSize=5 * MIB,
            retryDelays=self.retries,
        )
        self.assert_uploaded(outcome, source, session.target)
        self.assertEqual(cutter.struck, 2)

    def test_lost_last_answer(self: Any) -> None:
        """The last 204 never arrives: the next HEAD says that everything is there."""
        size = 4 * MIB
        cutter = self.cutter(swallow=b"HTTP/1.1 204 .*Upload-Offset: %d\r" % size)
        source = self.source(size)
        session = self.session(size)
        outcome = self.drive(
            source,
            uploadUrl=cutter.url(session.url),
            chunkSize=MIB,
            retryDelays=self.retries,
        )
        self.assert_uploaded(outcome, source, session.target)
        self.assertEqual(cutter.swallowed, 1)
        self.assertEqual(outcome.requests[-1], ("HEAD", 200, str(size)))

    def test_lost_middle_answer(self: Any) -> None:
        """A 204 in the middle never arrives: nothing is stored twice."""
        cutter = self.cutter(swallow=b"HTTP/1.1 204 .*Upload-Offset: %d\r" % (2 * MIB))
        source = self.source(4 * MIB)
        session = self.session(4 * MIB)
        outcome = self.drive(
            source,
            uploadUrl=cutter.url(session.url),
            chunkSize=MIB,
            retryDelays=self.retries,
        )
        self.assert_uploaded(outcome, source, session.target)
        self.assertEqual(cutter.swallowed, 1)

    def test_empty(self: Any) -> None:
        """Of an empty file only a HEAD is sent; the file exists."""
        source = self.source(0)
        session = self.session(0)
        outcome = self.drive(source, uploadUrl=session.url, buffer=True)
        self.assert_uploaded(outcome, source, session.target)
        self.assertEqual(outcome.requests, [("HEAD", 200, "0")])

    def test_empty_creation(self: Any) -> None:
        """Of an empty file only a POST is sent when there is no session yet."""
        source = self.source(0)
        session = self.session(0)
        outcome = self.drive(source, endpoint=session.endpoint, buffer=True)
        self.assert_uploaded(outcome, source, session.target)
        self.assertEqual(outcome.methods(), ["POST"])

    def test_terminate(self: Any) -> None:
        """abort(true) sends DELETE: the session is gone and leaves nothing behind."""
        source = self.source(40 * MIB)
        session = self.session(40 * MIB)
        outcome = self.drive(
            source, uploadUrl=session.url, terminateAt=12 * MIB, retryDelays=self.retries
        )
        self.assertEqual(outcome.errors, [])
        self.assertTrue(outcome.terminated)
        self.assertFalse(session.target.exists())
        self.assert_nothing_staged()
        again = self.drive(source, uploadUrl=session.url)
        self.assertFalse(again.done)
        self.assertIn(again.requests[0][1], (404, 410))


class TusJs4Tests(TusJsTests, ClientCase):
    """tus-js-client 4."""

    client = "tus-js-client"


class TusJs3Tests(TusJsTests, ClientCase):
    """tus-js-client 3."""

    client = "tus-js-client-3"


class TusJs2Tests(TusJsTests, ClientCase):
    """tus-js-client 2."""

    client = "tus-js-client-2"
    needs_size = True

"""
The simulator of a FlashBlade on its port, where the vendor's clients do not come to: faults, and
the command.
"""

from __future__ import annotations

import json
import re
import ssl
import subprocess
import sys
from http.client import HTTPSConnection
from pathlib import Path
from typing import Any

from treq.client import HTTPClient
from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.internet.ssl import Certificate, trustRootFromCertificates
from twisted.trial.unittest import SynchronousTestCase, TestCase
from twisted.web.client import (
    Agent,
    BrowserLikePolicyForHTTPS,
    PartialDownloadError,
    ResponseFailed,
)

from tests.engines.flashblade import simulator
from tests.engines.flashblade.array import API_TOKEN, example
from tests.engines.flashblade.simulator import Simulator
from tests.functional.daemon import CHECKOUT


class FaultTests(TestCase):
    """What goes wrong on the way."""

    timeout = 30

    def setUp(self) -> Any:
        directory = Path(self.mktemp())
        directory.mkdir(parents=True)
        self.array = example(reactor.seconds)
        self.simulator = Simulator(reactor, self.array, directory)
        self.addCleanup(lambda: Deferred.fromCoroutine(self.simulator.stop()))
        return Deferred.fromCoroutine(self.begin())

    async def begin(self) -> None:
        """Log in."""
        await self.simulator.start()
        authority = Certificate.loadPEM(self.simulator.ca.read_bytes())
        policy = BrowserLikePolicyForHTTPS(trustRootFromCertificates([authority]))
        self.http = HTTPClient(Agent(reactor, policy))
        answer = await self.http.post(
            f"{self.simulator.url}/api/login", headers={"api-token": API_TOKEN}
        )
        self.assertEqual(await answer.json(), {"username": "pureuser"})
        self.session = answer.headers.getRawHeaders("x-auth-token")[0]

    async def call(self, method: str, path: str, **named: Any) -> Any:
        """Make a request with the session."""
        url, headers = f"{self.simulator.url}/api/{path}", {"x-auth-token": self.session}
        return await self.http.request(method, url, headers=headers, **named)

    async def test_newest(self) -> None:
        """The newest version has another name."""
        answer = await self.call("GET", "2.latest/arrays")
        [array] = (await answer.json())["items"]
        self.assertIn("context", array)
        self.array.versions = ["1.12"]
        answer = await self.call("GET", "2.latest/arrays")
        self.assertEqual(answer.code, 404)
        self.assertEqual(list(await answer.json()), ["errors"])

    async def test_not_found(self) -> None:
        """What is not there is answered as errors are, after the session has been looked at."""
        for method, path, status in (
            ("GET", "2.0/nix", 404),
            ("GET", "2.99/arrays", 404),
            ("GET", "nix", 404),
            ("PUT", "2.0/arrays", 405),
            ("DELETE", "2.0/arrays", 404),
        ):
            answer = await self.call(method, path)
            self.assertEqual(answer.code, status, path)
            self.assertEqual(list(await answer.json()), ["errors"])
        self.session = "another"
        answer = await self.call("GET", "2.0/nix")
        self.assertEqual(answer.code, 403)
        self.assertEqual(list(await answer.json()), ["message"])

    async def test_bad_body(self) -> None:
        """A body has to be an object."""
        for body in (b"{", b"[]", b"5"):
            answer = await self.call("PATCH", "2.0/file-systems?names=fs001", data=body)
            self.assertEqual(answer.code, 400)
            await answer.json()

    async def test_garbage(self) -> None:
        """An answer that is no JSON, or says that it is not."""
        self.simulator.plan(simulator.garbage(b"<html>", "text/html"), where="/arrays")
        answer = await self.call("GET", "2.0/arrays")
        self.assertEqual(answer.headers.getRawHeaders("Content-Type"), ["text/html"])
        self.assertEqual(await answer.content(), b"<html>")
        self.simulator.plan(simulator.garbage())
        answer = await self.call("GET", "2.0/arrays")
        await self.assertFailure(Deferred.fromCoroutine(as_coroutine(answer.json())), ValueError)
        answer = await self.call("GET", "2.0/arrays")
        self.assertEqual(len((await answer.json())["items"]), 1)

    async def test_cut_off(self) -> None:
        """Half of an answer."""
        self.simulator.plan(simulator.cut_off)
        answer = await self.call("GET", "2.0/file-systems")
        await self.assertFailure(answer.content(), ResponseFailed, PartialDownloadError)

    async def test_answer_lost(self) -> None:
        """What was asked for is done, and nobody says so."""
        self.simulator.plan(simulator.answer_lost)
        change = self.call(
            "PATCH", "2.0/file-systems?names=fs001", data=b'{"provisioned": 5000000000}'
        )
        await self.assertFailure(Deferred.fromCoroutine(change), Exception)
        self.assertEqual(self.array.find("fs001").provisioned, 5000000000)

    async def test_held(self) -> None:
        """An answer that does not come, until its client gives up."""
        held = simulator.Held()
        self.simulator.plan(held, None)
        waiting = Deferred.fromCoroutine(self.call("GET", "2.0/arrays"))
        await held.wait()
        waiting.cancel()
        await self.assertFailure(waiting, Exception)
        await held.wait(0)
        self.simulator.mend()
        answer = await self.call("GET", "2.0/arrays")
        self.assertEqual(answer.code, 200)
        await answer.json()

    async def test_seen(self) -> None:
        """A test can see what has been asked for."""
        answer = await self.call("GET", "2.0/arrays?limit=5")
        await answer.json()
        seen = self.simulator.requests[-1]
        self.assertEqual(
            (seen.method, seen.path, seen.query), ("GET", "/api/2.0/arrays", {"limit": "5"})
        )
        self.assertEqual(self.simulator.count("GET", "/arrays"), 1)
        self.assertEqual((self.array.logins, self.simulator.count("POST", "/login")), (1, 1))
        self.assertGreaterEqual(self.simulator.opened, 1)


async def as_coroutine(deferred: Deferred[Any]) -> Any:
    """Wait for it."""
    return await deferred


class CommandTests(SynchronousTestCase):
    """``python -m tests.engines.flashblade``."""

    def test_command(self) -> None:
        """It says where it is, and serves until it is told to end."""
        process = subprocess.Popen(
            [sys.executable, "-m", "tests.engines.flashblade", "--file-system", "mine"]
            + ["--versions", "1.8", "2.3"],
            cwd=CHECKOUT,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.addCleanup(process.wait)
        self.addCleanup(process.kill)
        assert process.stdout is not None
        self.addCleanup(process.stdout.close)
        said = "".join(process.stdout.readline() for _ in range(4))
        found = re.search(r'"https://(127\.0\.0\.1):(\d+)"\n.*\n# its authority: (.*)\n', said)
        assert found is not None, said
        self.assertIn("mine", said)
        context = ssl.create_default_context(cafile=found[3])
        connection = HTTPSConnection(found[1], int(found[2]), timeout=20, context=context)
        self.addCleanup(connection.close)
        connection.request("GET", "/api/api_version")
        self.assertEqual(json.load(connection.getresponse()), {"versions": ["1.8", "2.3"]})
        process.terminate()
        self.assertEqual(process.wait(20), 0)
        self.assertFalse(Path(found[3]).exists())

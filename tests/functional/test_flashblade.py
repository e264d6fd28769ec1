"""
The REST client and the simulated array on a port, with TLS: what certificates are taken, one login
for many, and arrays that fail in the middle.
"""

from __future__ import annotations

import gzip
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

from twisted.internet import reactor
from twisted.internet.defer import Deferred, gatherResults
from twisted.internet.protocol import Factory
from twisted.logger import globalLogPublisher
from twisted.protocols.wire import QOTD
from twisted.trial.unittest import TestCase

from backends.purestorage.backend import PureStorageBackend
from backends.purestorage.client import ArrayError
from backends.purestorage.volume import PureStorageVolume
from storageproxy.config import VolumeSettings
from storageproxy.conformance import VolumeConformance
from storageproxy.errors import BackendFailure, StorageProxyError, VolumeUnavailable
from tests.engines.flashblade import simulator
from tests.engines.flashblade.array import API_TOKEN, example
from tests.engines.flashblade.simulator import Held, Simulator

TIB = 1 << 40


class FlashBladeCase(TestCase):
    """An array on a port, and a volume whose configuration names it."""

    async def setUp(self) -> None:
        await self.start_array()
        self.events: list[Any] = []
        globalLogPublisher.addObserver(self.events.append)
        self.addCleanup(globalLogPublisher.removeObserver, self.events.append)

    async def start_array(self) -> None:
        directory = Path(self.mktemp())
        directory.mkdir()
        self.simulator = Simulator(reactor, example(reactor.seconds), directory.resolve())
        await self.simulator.start()
        self.addCleanup(lambda: Deferred.fromCoroutine(self.simulator.stop()))
        self.array = self.simulator.array

    def volume_of(self, path: str = "/", **options: Any) -> PureStorageVolume:
        """A volume as the daemon makes it."""
        given = {
            "purity_endpoint": self.simulator.url,
            "purity_api_token": API_TOKEN,
            "purity_fs_name": "FB-NFS1",
            "purity_ca_file": str(self.simulator.ca),
            **options,
        }
        table = {key: value for key, value in given.items() if value is not None}
        settings = VolumeSettings("purestorage", path, options=table)
        self.assertEqual(PureStorageBackend().check("fb", settings), [])
        volume = PureStorageBackend().volume("fb", settings, reactor)
        self.addCleanup(lambda: Deferred.fromCoroutine(volume.stop()))
        return volume

    async def refusal(
        self, work: Coroutine[Any, Any, Any], kind: type[StorageProxyError] = BackendFailure
    ) -> str:
        """The message that something fails with."""
        with self.assertRaises(kind) as caught:
            await work
        return caught.exception.message


class CertificateTests(FlashBladeCase):
    async def test_valid(self) -> None:
        """A certificate of the authority that is configured is taken."""
        self.assertEqual(await self.volume_of().fs_usage(), (10 * TIB, 3 * TIB))

    async def test_not_valid(self) -> None:
        """One that has ended, is for another host, or of somebody else gets no token."""
        for kind, why in (
            ("expired", "purity_ca_file"),
            ("other-host", "purity_endpoint"),
            ("unknown", "purity_ca_file"),
        ):
            self.simulator.certificate.kind = kind
            message = await self.refusal(self.volume_of().fs_usage())
            self.assertIn(why, message)
            self.assertTrue(message.startswith(f"volume fb: the array {self.simulator.url} "))
        self.assertEqual(self.simulator.requests, [])

    async def test_system_authorities(self) -> None:
        """Without an authority in the configuration, those of the system count."""
        message = await self.refusal(self.volume_of(purity_ca_file=None).fs_usage())
        self.assertIn("certificate verify failed", message)
        self.assertEqual(self.simulator.requests, [])

    async def test_other_name(self) -> None:
        """The name in the configuration is the one that the certificate has to be for."""
        port = self.simulator.address.partition(":")[2]
        volume = self.volume_of(purity_endpoint=f"https://localhost:{port}")
        self.assertEqual((await volume.fs_usage())[0], 10 * TIB)
        volume = self.volume_of(purity_endpoint=f"https://127.0.0.2:{port}")
        await self.refusal(volume.fs_usage(), StorageProxyError)

    async def test_unreadable(self) -> None:
        """An authority that cannot be read when it is needed is told with its key, until it can."""
        volume = self.volume_of()
        hidden = self.simulator.ca.with_name("hidden")
        for content in (None, "no certificate"):
            self.simulator.ca.rename(hidden)
            if content is not None:
                self.simulator.ca.write_text(content)
            said = await self.refusal(volume.fs_usage())
            self.assertIn(f"purity_ca_file: {self.simulator.ca}: ", said)
            hidden.rename(self.simulator.ca)
        self.assertEqual(await volume.fs_usage(), (10 * TIB, 3 * TIB))

    async def test_not_looked_at(self) -> None:
        """Where the configuration says so, any certificate will do."""
        for kind in ("valid", "expired", "other-host", "unknown"):
            self.simulator.certificate.kind = kind
            volume = self.volume_of(purity_ssl_verify=False, purity_ca_file=None)
            self.assertEqual((await volume.fs_usage())[0], 10 * TIB)

    async def test_replaced(self) -> None:
        """A certificate that has ended and was replaced is taken, without a restart."""
        self.simulator.certificate.kind = "expired"
        volume = self.volume_of()
        self.assertEqual((await volume.hardware_info())["status"], "unavailable")
        self.simulator.certificate.kind = "valid"
        self.assertEqual((await volume.hardware_info())["status"], "healthy")


class SessionTests(FlashBladeCase):
    async def test_ten_callers(self) -> None:
        """Ten callers with an expired session cause one login, whatever they ask for."""
        for version in (None, "1.8", "1.12", "2.0"):
            volume = self.volume_of(purity_api_version=version)
            await volume.fs_usage()
            before = self.array.logins
            self.array.expire()
            answers = await gatherResults(
                [
                    Deferred.fromCoroutine(work)
                    for _ in range(5)
                    for work in (volume.fs_usage(), volume.performance_metric())
                ],
                consumeErrors=True,
            )
            self.assertEqual(len(answers), 10)
            self.assertEqual(answers[0], (10 * TIB, 3 * TIB))
            self.assertEqual(self.array.logins, before + 1)

    async def test_by_401(self) -> None:
        """So they do when the array says 401."""
        self.array.expired_status = 401
        volume = self.volume_of()
        await volume.fs_usage()
        self.array.expire()
        await gatherResults([Deferred.fromCoroutine(volume.fs_usage()) for _ in range(10)])
        self.assertEqual(self.array.logins, 2)

    async def test_idle(self) -> None:
        """A session that has ended because nobody used it is noticed."""
        clock = [1_600_000_000.0]
        self.array.clock = lambda: clock[0]
        volume = self.volume_of()
        await volume.fs_usage()
        clock[0] += 3600
        await volume.fs_usage()
        self.assertEqual(self.array.logins, 2)

    async def test_bad_token(self) -> None:
        """A token that the array does not take is told in hardware info, with its key."""
        info = await self.volume_of(purity_api_token="T-bad").hardware_info()
        self.assertEqual(info["status"], "unavailable")
        self.assertIn("purity_api_token", info["status_info"])
        self.assertIn("Invalid API token.", info["status_info"])

    async def test_stop(self) -> None:
        """No session and no connection is left when the volume has stopped."""
        volume = self.volume_of()
        await volume.fs_usage()
        self.assertEqual(len(self.array.sessions), 1)
        await volume.stop()
        self.assertEqual(self.array.sessions, {})

    async def test_connections(self) -> None:
        """Requests of one volume go over a few connections, which stay open."""
        volume = self.volume_of()
        for _ in range(20):
            await volume.fs_usage()
        self.assertEqual(self.simulator.opened, 1)
        await gatherResults([Deferred.fromCoroutine(volume.fs_usage()) for _ in range(50)])
        self.assertLessEqual(self.simulator.opened, 4)


class FaultTests(FlashBladeCase):
    async def test_slow(self) -> None:
        """An array that does not answer costs the deadline, and its connection is given up."""
        held = Held()
        volume = self.volume_of(deadline=0.2)
        self.simulator.plan(held, None)
        message = await self.refusal(volume.fs_usage(), VolumeUnavailable)
        self.assertIn("does not answer within 0.2 seconds", message)
        await held.wait(0)
        self.simulator.mend()
        # Not with that deadline: the login may take longer on a busy machine.
        self.assertEqual((await self.volume_of().fs_usage())[0], 10 * TIB)

    async def test_cut_off(self) -> None:
        """Half an answer, or none, is told as such; the next request goes well."""
        volume = self.volume_of()
        await volume.fs_usage()
        for fault in (simulator.cut_off, simulator.dropped):
            # Twisted asks once more by itself when an old connection ends without an answer.
            self.simulator.plan(fault, None)
            message = await self.refusal(volume.fs_usage(), VolumeUnavailable)
            self.assertIn("before its answer was complete", message, str(fault))
            self.simulator.mend()
            self.assertEqual((await volume.fs_usage())[0], 10 * TIB)

    async def test_errors(self) -> None:
        """Errors and garbage are told, and the next request goes well."""
        volume = self.volume_of()
        await volume.fs_usage()
        for fault, why in (
            (simulator.error(500, "Internal error.", "fs"), "fs: Internal error."),
            (simulator.garbage(), "no JSON table"),
            (simulator.garbage(b"<html>", "text/html"), "no JSON table"),
            (simulator.garbage(b"\x00" * (5 << 20)), "more than"),
        ):
            self.simulator.plan(fault)
            self.assertIn(why, await self.refusal(volume.fs_usage()))
            self.assertEqual((await volume.fs_usage())[0], 10 * TIB)

    async def test_compressed(self) -> None:
        """What is compressed is not unpacked, be it once or again and again."""
        body = gzip.compress(gzip.compress(bytes(1 << 26)))
        for encoding in ("gzip", "gzip, gzip"):
            volume = self.volume_of()
            answer = simulator.Answer(200, body, headers={"Content-Encoding": encoding})
            self.simulator.plan(simulator.instead(answer), 1, "/file-systems")
            self.assertIn("no JSON", await self.refusal(volume.fs_usage()))
            self.assertEqual(await volume.fs_usage(), (10 * TIB, 3 * TIB))

    async def test_cookies(self) -> None:
        """No cookie of an array is kept."""
        volume = self.volume_of()
        asked: list[list[bytes] | None] = []

        def set_cookie(request: Any, answer: Any) -> None:
            asked.append(request.requestHeaders.getRawHeaders(b"Cookie"))
            request.addCookie(b"a", b"b")
            answer().send(request)

        self.simulator.plan(set_cookie, None)
        await volume.fs_usage()
        await volume.fs_usage()
        self.assertEqual(asked, [None] * len(asked))
        self.assertGreater(len(asked), 2)

    async def test_gone(self) -> None:
        """An array that is switched off cannot be reached, and is there again afterwards."""
        volume = self.volume_of()
        await volume.fs_usage()
        port = int(self.simulator.address.partition(":")[2])
        await self.simulator.stop()
        info = await volume.hardware_info()
        self.assertEqual((info["status"], info["metadata"]), ("unavailable", {}))
        self.assertIn("cannot be reached", info["status_info"])
        self.array.expire()
        await self.simulator.start(port)
        self.assertEqual((await volume.hardware_info())["status"], "healthy")

    async def test_not_tls(self) -> None:
        """Something on the port that speaks no TLS is told as such."""
        port = reactor.listenTCP(0, Factory.forProtocol(QOTD), interface="127.0.0.1")
        self.addCleanup(port.stopListening)
        url = f"https://127.0.0.1:{port.getHost().port}"
        message = await self.refusal(
            self.volume_of(purity_endpoint=url).fs_usage(), StorageProxyError
        )
        self.assertIn(url, message)

    async def test_busy(self) -> None:
        """A busy array is waited for, in each of its three ways to say so."""
        volume = self.volume_of()
        await volume.fs_usage()
        for status in (429, 503, 500):
            self.simulator.plan(simulator.overloaded(status, Retry_After="0"), 3)
            self.assertEqual((await volume.fs_usage())[0], 10 * TIB)

    async def test_too_busy(self) -> None:
        """One that wants more time than there is fails at once."""
        volume = self.volume_of()
        self.simulator.plan(simulator.overloaded(429, Retry_After="60"), None)
        message = await self.refusal(volume.fs_usage(), VolumeUnavailable)
        self.assertIn("API rate limit exceeded", message)

    async def test_lost_answer(self) -> None:
        """A limit is set whether or not the answer comes; that it did not is told."""
        volume = self.volume_of()
        await volume.get_volume_quota()
        self.simulator.plan(simulator.answer_lost)
        await self.refusal(volume.set_volume_quota(5 * TIB), VolumeUnavailable)
        self.assertEqual(await volume.get_volume_quota(), 5 * TIB)

    async def test_forbidden(self) -> None:
        """What the user may not do is told with the array's words, after one new login."""
        volume = self.volume_of()
        await volume.get_volume_quota()
        self.simulator.plan(simulator.error(403, "Operation not permitted."), 2, "/file-systems")
        message = await self.refusal(volume.set_volume_quota(5 * TIB), ArrayError)
        self.assertIn("Operation not permitted.", message)
        self.assertEqual(self.array.logins, 2)

    async def test_log(self) -> None:
        """Whatever goes wrong, no token is in the log."""
        volume = self.volume_of()
        for fault in (
            simulator.error(500, f"echo {API_TOKEN}"),
            simulator.dropped,
            simulator.garbage(API_TOKEN.encode()),
            simulator.error(403, API_TOKEN),
        ):
            self.simulator.plan(fault)
            await volume.check()
        sessions = list(self.array.sessions)
        await volume.stop()
        self.assertTrue(sessions)
        for event in self.events:
            for secret in (API_TOKEN, *sessions):
                self.assertNotIn(secret, repr(event))


class QuotaTests(FlashBladeCase):
    async def test_set(self) -> None:
        """The limit of the file system is set, read back, and taken away, by each version."""
        for version in (None, "1.8", "1.8.1", "1.12", "2.0", "2.9"):
            volume = self.volume_of(purity_api_version=version)
            for size in (7 * TIB, TIB, 0, 10 * TIB):
                await volume.set_volume_quota(size)
                self.assertEqual(await volume.get_volume_quota(), size)
                found = self.array.find("FB-NFS1")
                self.assertEqual(found.provisioned or 0, size)
                self.assertEqual(found.hard_limit_enabled, size > 0)


class ConformanceTests(VolumeConformance, FlashBladeCase):
    """What the daemon expects of every volume, with the array on its port."""

    def setUp(self) -> None:
        self.successResultOf(Deferred.fromCoroutine(self.start_array()))
        VolumeConformance.setUp(self)

    def make_volume(self, path: str) -> PureStorageVolume:
        return self.volume_of(path)

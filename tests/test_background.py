"""
Work that comes to its end whoever waits for it.
"""

from __future__ import annotations

from twisted.internet.defer import CancelledError, Deferred
from twisted.logger import globalLogPublisher
from twisted.trial.unittest import SynchronousTestCase

from storageproxy.background import Background


class BackgroundTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.background = Background()
        self.work: Deferred[str] = Deferred()
        self.ended: list[str] = []
        self.logged: list[str] = []

        def log(event: dict[str, object]) -> None:
            if event.get("log_namespace") == "storageproxy.background":
                self.logged.append(str(event["log_format"]).format(**event))

        globalLogPublisher.addObserver(log)
        self.addCleanup(globalLogPublisher.removeObserver, log)

    async def working(self) -> str:
        try:
            return await self.work
        except CancelledError:
            self.ended.append("cancelled")
            raise
        finally:
            self.ended.append("ended")

    def wait(self) -> Deferred[None]:
        return Deferred.fromCoroutine(self.background.wait())

    def test_result(self) -> None:
        """The result of the work is told to who waits for it."""
        answer = self.background.run("Work", self.working())
        self.assertNoResult(answer)
        self.work.callback("done")
        self.assertEqual(self.successResultOf(answer), "done")

    def test_at_once(self) -> None:
        """Work that is done at once tells its result at once."""
        self.work.callback("done")
        self.assertEqual(self.successResultOf(self.background.run("Work", self.working())), "done")
        self.successResultOf(self.wait())

    def test_error(self) -> None:
        """Who waits is told that the work has failed; the log is not."""
        answer = self.background.run("Work", self.working())
        self.work.errback(KeyError("broken"))
        self.failureResultOf(answer, KeyError)
        self.assertEqual(self.logged, [])

    def test_cancel(self) -> None:
        """Who gives up waiting is free at once, and the work goes on."""
        answer = self.background.run("Work", self.working())
        answer.cancel()
        self.failureResultOf(answer, CancelledError)
        self.assertEqual(self.ended, [])
        self.work.callback("done")
        self.assertEqual(self.ended, ["ended"])

    def test_fails_alone(self) -> None:
        """A failure that nobody waits for is in the log, with what has failed."""
        answer = self.background.run("The clone", self.working())
        answer.cancel()
        self.failureResultOf(answer, CancelledError)
        self.work.errback(KeyError("broken"))
        self.assertEqual(len(self.logged), 1)
        self.assertIn("The clone", self.logged[0])
        self.assertIn("broken", self.logged[0])

    def test_start(self) -> None:
        """Work that nobody waits for is done, and only its failure is told, in the log."""
        self.background.start("Work", self.working())
        self.work.callback("done")
        self.assertEqual((self.ended, self.logged), (["ended"], []))
        self.work = Deferred()
        self.background.start("The removal", self.working())
        self.work.errback(KeyError("broken"))
        self.assertIn("The removal", self.logged[0])
        self.assertEqual(self.flushLoggedErrors(), [])

    def test_wait(self) -> None:
        """The daemon can wait until all work has ended, however it ends."""
        self.successResultOf(self.wait())
        first, self.work = self.work, Deferred()
        self.background.start("Second", self.working())
        second, self.work = self.work, first
        self.background.start("First", self.working())
        waiting = self.wait()
        first.callback("done")
        self.assertNoResult(waiting)
        second.errback(KeyError("broken"))
        self.successResultOf(waiting)
        self.successResultOf(self.wait())

    def test_wait_cancelled(self) -> None:
        """When the daemon waits no longer, the work is not ended because of that."""
        self.background.start("Work", self.working())
        waiting = self.wait()
        waiting.cancel()
        waiting.addErrback(lambda _: None)
        self.assertEqual(self.ended, [])
        self.work.callback("done")
        self.assertEqual(self.ended, ["ended"])

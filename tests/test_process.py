"""
Commands: real ones, which end, hang, say too much, or do not exist.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from twisted.internet import reactor
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.task import Clock
from twisted.trial.unittest import TestCase

from storageproxy import process
from storageproxy.process import CommandFailed, CommandTimedOut, Outcome, environment
from storageproxy.testing import GIVE_UP


class Reactor(Clock):
    """The real one for processes, and a clock for deadlines."""

    def __init__(self) -> None:
        super().__init__()
        self.processes: list[Any] = []
        self.ended: list[Deferred[None]] = []

    def spawnProcess(self, protocol: Any, *arguments: Any, **more: Any) -> Any:
        gone: Deferred[None] = Deferred()
        self.ended.append(gone)
        ended = protocol.processEnded

        def process_ended(reason: Any) -> None:
            ended(reason)
            gone.callback(None)

        protocol.processEnded = process_ended
        made = reactor.spawnProcess(protocol, *arguments, **more)  # type: ignore[attr-defined]
        self.processes.append(made)
        return made


class ProcessTests(TestCase):
    timeout = GIVE_UP

    def setUp(self) -> None:
        self.reactor = Reactor()

    def run_command(self, *argv: str, **more: Any) -> Deferred[Outcome]:
        return process.run(self.reactor, argv, 15.0, **more)

    async def shell(self, script: str, **more: Any) -> Outcome:
        return await self.run_command("sh", "-c", script, **more)

    async def begun(self, *argv: str) -> tuple[Deferred[Outcome], int]:
        """A command that has said that it runs, and its process id."""
        fifo = Path(self.mktemp())
        os.mkfifo(fifo)
        reading = os.open(fifo, os.O_RDWR | os.O_NONBLOCK)
        self.addCleanup(os.close, reading)
        made = self.run_command("sh", "-c", f"{'; '.join(argv)}; echo $$ > {fifo}; exec sleep 1000")
        said: Deferred[int] = Deferred()

        def look() -> None:
            try:
                said.callback(int(os.read(reading, 100)))
            except BlockingIOError:
                reactor.callLater(0.001, look)  # type: ignore[attr-defined]

        look()
        return made, await said

    def assertGone(self, pid: int) -> None:
        """A process has ended, and somebody has asked how."""
        self.assertFalse(os.path.exists(f"/proc/{pid}"))

    async def test_outcome(self) -> None:
        """What it writes is kept apart, with its exit status."""
        outcome = await self.shell("echo out; echo err >&2; exit 3")
        self.assertEqual(outcome, Outcome(3, b"out\n", b"err\n"))
        self.assertEqual(self.reactor.getDelayedCalls(), [])

    async def test_arguments(self) -> None:
        """Arguments are given as they are; nothing makes words or names of files of them."""
        outcome = await self.run_command("printf", "%s|", "a b", "*", "$HOME", "")
        self.assertEqual(outcome, Outcome(0, b"a b|*|$HOME||", b""))

    async def test_signal(self) -> None:
        """One that a signal ends says so."""
        self.assertEqual((await self.shell("kill -9 $$")).status, -9)

    async def test_no_input(self) -> None:
        """There is nothing to read for it."""
        self.assertEqual(await self.run_command("cat"), Outcome(0, b"", b""))

    async def test_environment(self) -> None:
        """Its environment is small, and has no secrets of the daemon in it."""
        outcome = await self.run_command("env", environ={"PATH": "/usr/bin", "SECRET": "x"})
        self.assertEqual(
            sorted(outcome.output.decode().split()),
            ["LANG=C.UTF-8", "LC_ALL=C.UTF-8", "PATH=/usr/bin:/usr/sbin:/sbin"],
        )
        self.assertTrue(environment({})["PATH"])

    async def test_descriptors(self) -> None:
        """It gets none of the daemon's open files."""
        reading, writing = os.pipe()
        self.addCleanup(os.close, reading)
        self.addCleanup(os.close, writing)
        os.set_inheritable(writing, True)
        outcome = await self.shell("ls /proc/$$/fd")
        self.assertEqual(outcome.output.split(), [b"0", b"1", b"2"])

    async def test_missing(self) -> None:
        """A command that is not installed is named."""
        with self.assertRaises(CommandFailed) as caught:
            await self.run_command("no-such-command")
        self.assertIn("no-such-command: not found", str(caught.exception))
        self.assertEqual(self.reactor.getDelayedCalls(), [])

    async def test_not_executable(self) -> None:
        """A file that is no command is passed over on the path."""
        directory = Path(self.mktemp()).absolute()
        directory.mkdir(parents=True)
        (directory / "true").write_text("no command")
        outcome = await self.run_command("true", environ={"PATH": f"{directory}:/usr/bin:/bin"})
        self.assertEqual(outcome.status, 0)

    async def test_path(self) -> None:
        """A command can be named by its path."""
        script = Path(self.mktemp()).absolute()
        script.write_text("#!/bin/sh\necho here\n")
        script.chmod(0o755)
        self.assertEqual((await self.run_command(str(script))).output, b"here\n")

    async def test_deadline(self) -> None:
        """One that takes too long is told about at once, with what it said, and is ended."""
        made, pid = await self.begun("echo stuck >&2")
        self.reactor.advance(14.9)
        self.assertFalse(made.called)
        self.reactor.advance(0.2)
        with self.assertRaises(CommandTimedOut) as caught:
            await made
        self.assertIn("no end after 15 seconds", str(caught.exception))
        await self.reactor.ended[0]
        self.assertGone(pid)
        self.assertEqual(self.reactor.getDelayedCalls(), [])

    async def test_kill(self) -> None:
        """One that does not want to end is killed."""
        made, pid = await self.begun("trap '' TERM")
        self.reactor.advance(15.0)
        with self.assertRaises(CommandTimedOut):
            await made
        self.assertTrue(os.path.exists(f"/proc/{pid}"))
        self.reactor.advance(process.GRACE)
        await self.reactor.ended[0]
        self.assertGone(pid)

    async def test_cancel(self) -> None:
        """One that nobody waits for is ended."""
        made, pid = await self.begun("true")
        made.cancel()
        with self.assertRaises(CancelledError):
            await made
        await self.reactor.ended[0]
        self.assertGone(pid)
        self.assertEqual(self.reactor.getDelayedCalls(), [])

    async def test_too_much(self) -> None:
        """One that goes on writing is ended."""
        for output in ("yes", "yes >&2"):
            with self.assertRaises(CommandFailed) as caught:
                await self.shell(f"exec {output}", max_output=100_000)
            self.assertIn("more than 100000 bytes", str(caught.exception))
            await self.reactor.ended[-1]
            self.assertGone(self.reactor.processes[-1].pid or 0)

    async def test_much(self) -> None:
        """What is just within the bound comes whole."""
        outcome = await self.shell("head -c 99999 /dev/zero", max_output=100_000)
        self.assertEqual(len(outcome.output), 99999)

    async def test_children(self) -> None:
        """One that leaves children which hold its outputs is not waited for beyond its time."""
        made = self.run_command("sh", "-c", "sleep 1000 & echo $!")
        child = await self.first_line(made)
        self.addCleanup(os.kill, child, 9)
        self.reactor.advance(15.0)
        with self.assertRaises(CommandTimedOut):
            await made
        self.reactor.advance(process.GRACE)
        await self.reactor.ended[0]

    async def first_line(self, made: Deferred[Outcome]) -> int:
        """The number that a command has written, when it has ended itself."""
        said: Deferred[int] = Deferred()
        transport = self.reactor.processes[-1]
        protocol = transport.proto

        def look() -> None:
            if transport.pid is None:
                said.callback(int(bytes(protocol._said[1])))
            else:
                reactor.callLater(0.001, look)  # type: ignore[attr-defined]

        look()
        return await said

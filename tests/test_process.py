"""
Commands: real ones, which end, hang, say too much, or do not exist.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from twisted.internet import reactor
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.task import Clock
from twisted.internet.threads import deferToThread
from twisted.trial.unittest import TestCase

from storageproxy import process
from storageproxy.process import (
    CommandFailed,
    CommandTimedOut,
    Confinement,
    Outcome,
    environment,
)
from storageproxy.testing import GIVE_UP
from tests.commands import all_ended
from tests.test_beneath import descriptors


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
            # Which of both is known first is up to the kernel.
            if transport.pid is None and protocol._said[1]:
                said.callback(int(bytes(protocol._said[1])))
            else:
                reactor.callLater(0.001, look)  # type: ignore[attr-defined]

        look()
        return await said


class StreamTests(TestCase):
    """What threads take of a command as it comes."""

    timeout = GIVE_UP

    def setUp(self) -> None:
        self.path = os.path.realpath(self.mktemp())
        os.mkdir(self.path)
        self.directory = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY)
        self.addCleanup(os.close, self.directory)
        before = len(descriptors())
        self.addCleanup(lambda: self.assertEqual(len(descriptors()), before))
        self.addCleanup(all_ended, reactor)

    def stream(self, *argv: str, silence: float = 15.0, **more: Any) -> Iterator[bytes]:
        return process.stream(reactor, argv, self.directory, silence, **more)

    async def all_of(self, *argv: str, **more: Any) -> bytes:
        joined: bytes = await deferToThread(b"".join, self.stream(*argv, **more))
        return joined

    async def shell(self, script: str, **more: Any) -> bytes:
        return await self.all_of("sh", "-c", script, **more)

    async def failure(self, script: str, **more: Any) -> str:
        with self.assertRaises(CommandFailed) as caught:
            await self.shell(script, **more)
        return str(caught.exception)

    async def begun(self, script: str) -> tuple[Any, int]:
        """What a command is taken from, and its process id, which it has written first."""
        taken = self.stream("sh", "-c", f"echo $$; {script}")

        def first() -> int:
            return int(next(data for data in taken if data))

        return taken, await deferToThread(first)

    async def gone(self, *pids: int) -> None:
        """Wait until there is no such process."""
        ended: Deferred[None] = Deferred()

        def look() -> None:
            # One that was not ours stays as a zombie where nobody adopts it.
            if any(_lives(pid) for pid in pids):
                reactor.callLater(0.001, look)  # type: ignore[attr-defined]
            else:
                ended.callback(None)

        look()
        await ended

    async def test_output(self) -> None:
        """All that it writes comes, however much that is."""
        self.assertEqual(len(await self.shell("head -c 3000000 /dev/zero")), 3_000_000)

    async def test_nothing(self) -> None:
        """One that writes nothing is one that has ended well."""
        self.assertEqual(await self.shell("true"), b"")

    async def test_directory(self) -> None:
        """It works in the directory that is open, wherever that is by now, and gets no other."""
        os.rename(self.path, f"{self.path}-moved")
        os.symlink("/", self.path)
        (Path(f"{self.path}-moved") / "inside").touch()
        self.assertEqual(await self.shell("ls; ls /proc/$$/fd"), b"inside\n0\n1\n2\n")

    async def test_environment(self) -> None:
        """Its environment is as small as that of other commands."""
        said = await self.all_of("env", environ={"PATH": "/usr/bin:/bin", "SECRET": "x"})
        names = {line.partition(b"=")[0] for line in said.splitlines()}
        self.assertLessEqual({b"PATH", b"LANG", b"LC_ALL"}, names)
        self.assertNotIn(b"SECRET", names)

    async def test_arguments(self) -> None:
        """Arguments are given as they are, also bytes that are no text."""
        odd = os.fsdecode(b"\xff")
        said = await self.all_of("printf", "%s|", "a b", "*", odd, "")
        self.assertEqual(said, b"a b|*|\xff||")

    async def test_failure(self) -> None:
        """One that fails says why, or how it has ended."""
        self.assertEqual(await self.failure("echo no luck >&2; exit 3"), "sh: no luck")
        self.assertEqual(await self.failure("exit 3"), "sh: exit status 3")
        self.assertEqual(await self.failure("kill -9 $$"), "sh: ended by signal 9")

    async def test_complaint(self) -> None:
        """One that complains has failed, whatever its exit status; not all of it is told."""
        self.assertEqual(await self.failure("echo sh: odd >&2"), "sh: odd")
        self.assertLess(len(await self.failure("yes | head -c 1000000 >&2")), 1000)

    async def test_missing(self) -> None:
        """A command that is not installed is named."""
        with self.assertRaises(CommandFailed) as caught:
            await self.all_of("no-such-command")
        self.assertIn("no-such-command: not found", str(caught.exception))

    async def test_cannot_be_begun(self) -> None:
        """A file that is no program is a failure like others."""
        script = Path(self.path) / "script"
        script.write_text("#!/nowhere\n")
        script.chmod(0o755)
        with self.assertRaises(CommandFailed) as caught:
            await self.all_of(str(script))
        self.assertIn("it cannot be begun", str(caught.exception))

    async def test_no_descriptors(self) -> None:
        """Without descriptors to spare it is not begun, and none is lost."""
        before = descriptors()
        for call in ("dup", "pipe"):

            def full(*_: object) -> None:
                raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

            patched = self.patch(os, call, full)
            with self.assertRaises(CommandFailed) as caught:
                await self.all_of("true")
            patched.restore()
            self.assertEqual(str(caught.exception), "true: Too many open files")
        self.assertEqual(descriptors(), before)

    async def test_name(self) -> None:
        """A command that is many, by links to it, is told which one it is to be."""
        places = Path(self.mktemp()).resolve()
        places.mkdir()
        many = places / "many"
        many.write_text('#!/bin/sh\necho "${0##*/}"\n')
        many.chmod(0o755)
        (places / "one").symlink_to("many")
        environ = {"PATH": f"{places}:/usr/bin:/bin"}
        software = Confinement(("/usr", "/bin", "/lib", "/lib64"))
        for confinement in (None, software):
            said = await self.all_of("one", environ=environ, confinement=confinement)
            self.assertEqual(said, b"one\n")

    async def test_relative_path(self) -> None:
        """A command on a relative path is that of the daemon, not one in the directory."""
        places = Path(self.mktemp())
        places.mkdir()
        command = places / "one"
        command.write_text("#!/bin/sh\necho right\n")
        command.chmod(0o755)
        self.assertEqual(await self.all_of("one", environ={"PATH": str(places)}), b"right\n")

    async def test_no_process(self) -> None:
        """That there can be no more processes is one, too."""

        class Full:
            callFromThread = reactor.callFromThread  # type: ignore[attr-defined]

            def spawnProcess(self, *arguments: Any, **more: Any) -> None:
                raise BlockingIOError(11, "Resource temporarily unavailable")

        taken = process.stream(Full(), ("true",), self.directory, 15.0)
        with self.assertRaises(CommandFailed) as caught:
            await deferToThread(list, taken)
        self.assertIn("Resource temporarily unavailable", str(caught.exception))

    async def test_silence(self) -> None:
        """One that does nothing for too long is ended, with all that it has started."""
        with self.assertRaises(CommandTimedOut) as caught:
            await self.shell("echo $$ > pid; sleep 1000 & echo $! > child; wait", silence=0.5)
        self.assertIn("nothing comes of it for 0.5 seconds", str(caught.exception))
        await self.gone(*(int((Path(self.path) / name).read_text()) for name in ("pid", "child")))

    async def test_silence_at_the_end(self) -> None:
        """One that has closed its output and goes on is no exception."""
        with self.assertRaises(CommandTimedOut):
            await self.shell("echo $$ > pid; exec >&-; sleep 1000", silence=0.5)
        await self.gone(int((Path(self.path) / "pid").read_text()))

    async def test_busy(self) -> None:
        """One that computes is no silent one, and whoever takes hears of it now and then."""
        script = "while [ ! -e stop ]; do :; done"

        def take() -> int:
            quiet = 0
            for data in self.stream("sh", "-c", script, silence=process.MOMENT * 2):
                quiet += not data
                if quiet == 6:
                    (Path(self.path) / "stop").touch()
            return quiet

        self.assertGreaterEqual(await deferToThread(take), 6)

    async def test_waits(self) -> None:
        """It waits when nothing is taken of what it writes."""
        taken, pid = await self.begun(
            "until [ -e begin ]; do :; done; exec head -c 100000000 /dev/zero"
        )
        (Path(self.path) / "begin").touch()
        full: Deferred[None] = Deferred()

        def look() -> None:
            # It sleeps in a write to the pipe, of which there are 64 KiB in the kernel.
            if b"pipe_write" in Path(f"/proc/{pid}/wchan").read_bytes():
                full.callback(None)
            else:
                reactor.callLater(0.001, look)  # type: ignore[attr-defined]

        look()
        await full
        left = await deferToThread(lambda: sum(map(len, taken)))
        self.assertEqual(left, 100_000_000)

    async def test_close(self) -> None:
        """One of which no more is taken is ended."""
        taken, pid = await self.begun("exec sleep 1000")
        await deferToThread(taken.close)
        await self.gone(pid)

    async def test_close_at_once(self) -> None:
        """One of which nothing was taken is not even begun."""
        self.stream("sh", "-c", "exec sleep 1000").close()  # type: ignore[attr-defined]

    async def test_kill(self) -> None:
        """One that does not want to end is killed, with what it has started."""
        self.patch(process, "GRACE", 0.05)
        taken, pid = await self.begun(
            "trap '' TERM; sleep 1000 & echo $! > child; wait; sleep 1000"
        )
        child = Path(self.path) / "child"
        while not child.exists() or not child.read_text():
            await deferToThread(os.sched_yield)
        await deferToThread(taken.close)
        await self.gone(pid, int(child.read_text()))

    async def test_dies_with_the_daemon(self) -> None:
        """It is killed when the process that has begun it is."""
        taken, pid = await self.begun("exec sleep 1000")
        status = Path(f"/proc/{pid}/status").read_text()
        self.assertIn(f"PPid:\t{os.getpid()}\n", status)
        await deferToThread(taken.close)
        await self.gone(pid)

    async def test_confined(self) -> None:
        """One that is confined reads in its directory only, and removes when it is let."""
        outside = Path(f"{self.path}-outside")
        outside.mkdir()
        (outside / "secret").write_text("secret")
        (Path(self.path) / "inside").write_text("inside")
        (Path(self.path) / "out").symlink_to(outside)
        software = ("/usr", "/bin", "/lib", "/lib64")
        reads = Confinement(software)
        self.assertEqual(await self.shell("cat inside", confinement=reads), b"inside")
        for script in (
            "cat out/secret",
            f"cat {outside}/secret",
            "ls out/",
            "echo x > new",
            "rm inside",
            "rm out/secret",
            "cat /proc/$PPID/environ",
        ):
            with self.assertRaises(CommandFailed, msg=script):
                await self.shell(script, confinement=reads)
        removes = Confinement(software, removal=True)
        for script in ("rm -f out/secret", "find out/ -delete", "echo x > new"):
            with self.assertRaises(CommandFailed, msg=script):
                await self.shell(script, confinement=removes)
        self.assertEqual(await self.shell("rm inside", confinement=removes), b"")
        self.assertEqual(sorted(os.listdir(self.path)), ["out"])
        self.assertEqual((outside / "secret").read_text(), "secret")

    async def test_confined_to_itself(self) -> None:
        """Wherever a command lies, it may read itself, and not what lies beside it."""
        place = Path(f"{self.path}-commands")
        place.mkdir()
        (place / "secret").write_text("secret")
        for name, script in (("good", "echo well"), ("bad", "cat ${0%/*}/secret")):
            (place / name).write_text(f"#!/bin/sh\n{script}\n")
            (place / name).chmod(0o755)
        confinement = Confinement(("/usr", "/bin", "/lib", "/lib64"))
        self.assertEqual(await self.all_of(str(place / "good"), confinement=confinement), b"well\n")
        with self.assertRaises(CommandFailed) as caught:
            await self.all_of(str(place / "bad"), confinement=confinement)
        self.assertIn("Permission denied", str(caught.exception))


def _lives(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False

"""
Whom the agent serves, and which directories it takes.
"""

from __future__ import annotations

import os
import resource
import shutil
import subprocess
import sys
import threading
from pathlib import Path
from uuid import uuid4

from twisted.internet import reactor
from twisted.protocols import amp
from twisted.trial.unittest import TestCase

from backends.xfs.interfaces import Drifted, Limit, NotManaged
from backends.xfs.remote import RemoteProjects
from tests.functional.daemon import unprivileged
from tests.xfs import kernel, services

MEBI = 1 << 20

#: Sends what it is given to a socket, and prints what comes back until the other side is done.
VISITOR = """
import socket, sys
visitor = socket.socket(socket.AF_UNIX)
visitor.connect(sys.argv[1])
try:
    visitor.sendall(bytes.fromhex(sys.argv[2]))
    print(visitor.recv(1 << 16).hex())
except OSError as error:
    print(error, file=sys.stderr)
"""


#: Connects to a socket as often as it can, each time with as many directories as a message has,
#: and stays there until its standard input ends.
FLOOD = """
import os, resource, socket, sys
_, most = resource.getrlimit(resource.RLIMIT_NOFILE)
resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
top = os.open("/", os.O_RDONLY)
visitors = []
for number in range(most - 20):
    visitor = socket.socket(socket.AF_UNIX)
    try:
        visitor.connect(sys.argv[1])
        if number % 2:
            socket.send_fds(visitor, [b"x"], [top] * 253)
    except OSError:
        pass
    visitors.append(visitor)
print(len(visitors), flush=True)
sys.stdin.read()
"""


class AgentCase(TestCase):
    """A test with a vfolder of the daemon's user, and a connection of this one's."""

    def setUp(self) -> None:
        self.agent = services.agent()
        self.volume = services.volume("local")
        self.projects = RemoteProjects(reactor, str(self.agent.socket), str(self.volume))
        self.addCleanup(self.projects.disconnect)
        self.folder = self.make_folder()

    def make_folder(self, mode: int = 0o755) -> Path:
        """Make an empty directory where a vfolder lies."""
        digits = uuid4().hex
        path = self.volume / digits[:2] / digits[2:4] / digits[4:]
        path.mkdir(parents=True)
        os.chown(path, services.USER, services.USER)
        path.chmod(mode)
        return path

    def open(self, path: Path, flags: int = os.O_RDONLY) -> int:
        """Open something until the test ends."""
        descriptor = os.open(path, flags)
        self.addCleanup(os.close, descriptor)
        return descriptor

    async def limited(self, path: Path, size: int = MEBI) -> int:
        """Give a directory a project and a limit; the project."""
        descriptor = self.open(path)
        number = await self.projects.allocate(descriptor)
        await self.projects.set_limit(descriptor, Limit(size))
        return number


class PeerTests(AgentCase):
    """Who asks."""

    def visit(self, user: int) -> bytes:
        """What a process of a user gets for an answer."""
        box = amp.AmpBox(
            {b"_command": b"Release", b"_ask": b"1", b"volume": os.fsencode(self.volume)}
        )
        box[b"project"] = b"99999"
        request = box.serialize()
        said = subprocess.run(
            [
                *unprivileged(user),
                *(sys.executable, "-S", "-E", "-c", VISITOR),
                *(str(self.agent.socket), request.hex()),
            ],
            check=True,
            capture_output=True,
            text=True,
        ).stdout
        return bytes.fromhex(said)

    def test_user(self) -> None:
        """The daemon's user gets an answer."""
        self.assertIn(b"_answer", self.visit(services.USER))

    def test_others(self) -> None:
        """An unprivileged process of another user gets nothing, and changes nothing."""
        before = (self.agent.registry / "projid").read_bytes()
        for user in (services.USER + 1, 65534):
            self.assertEqual(self.visit(user), b"")
        self.assertEqual((self.agent.registry / "projid").read_bytes(), before)
        self.assertIn("uid 65534", self.agent.log.read_text())

    async def test_flood(self) -> None:
        """One who takes all that he can get takes nothing from another."""
        assert self.agent.process is not None
        opened = Path(f"/proc/{self.agent.process.pid}/fd")
        limits = resource.prlimit(self.agent.process.pid, resource.RLIMIT_NOFILE)
        descriptor = self.open(self.folder)
        number = await self.projects.allocate(descriptor)
        flood = subprocess.Popen(
            [
                *unprivileged(services.USER),
                *(sys.executable, "-S", "-E", "-c", FLOOD, str(self.agent.socket)),
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        assert flood.stdin is not None and flood.stdout is not None
        try:
            tried = int(flood.stdout.readline())
            self.assertGreater(tried, 500)
            self.assertLess(len(list(opened.iterdir())), limits[0])
            other = RemoteProjects(reactor, str(self.agent.socket), str(self.volume))
            self.addCleanup(other.disconnect)
            for projects in (self.projects, other):
                account = await projects.set_limit(descriptor, Limit(MEBI))
                self.assertEqual((account.project, account.limit), (number, Limit(MEBI)))
        finally:
            flood.stdin.close()
            flood.wait(timeout=60)
            flood.stdout.close()
        # It is let in again when the agent has seen that it let go.
        while not (said := self.visit(services.USER)):
            pass
        self.assertIn(b"_answer", said)


class DirectoryTests(AgentCase):
    """Which directories are taken."""

    async def refused(self, path: Path) -> None:
        """A directory is refused, and nothing is done to it."""
        descriptor = self.open(path)
        with self.assertRaises(NotManaged):
            await self.projects.allocate(descriptor)
        with self.assertRaises(NotManaged):
            await self.projects.set_limit(descriptor, Limit(MEBI))
        self.assertNotIn(str(path), self.agent.recorded())

    async def test_folder(self) -> None:
        """A vfolder gets a project, with its limit, as the kernel has it."""
        descriptor = self.open(self.folder)
        number = await self.projects.allocate(descriptor)
        await self.projects.set_limit(descriptor, Limit(4 * MEBI, 100))
        self.assertEqual(kernel.project(self.folder), (number, True))
        charge = kernel.charges()[number]
        self.assertEqual((charge.limit, charge.inodes_limit), (4 * MEBI, 100))
        account = await self.projects.set_limit(descriptor, Limit(8 * MEBI))
        self.assertEqual(account.limit, Limit(8 * MEBI))
        (self.folder / "file").write_bytes(bytes(MEBI))
        account = await self.projects.account(descriptor)
        self.assertEqual((account.project, account.size, account.inodes), (number, MEBI, 2))

    async def test_audited(self) -> None:
        """Each change has a line in the log of the agent, with who has asked for it."""
        number = await self.limited(self.folder, 4 * MEBI)
        lines = self.agent.log.read_text().splitlines()
        told = [line for line in lines if str(number) in line and "uid 0" in line]
        self.assertTrue(any(str(self.folder) in line for line in told), told)
        self.assertTrue(any(str(4 * MEBI) in line for line in told), told)

    async def test_closed_folder(self) -> None:
        """One that nobody but its owner may enter gets one as well."""
        path = self.make_folder(0o700)
        number = await self.limited(path)
        self.assertEqual(kernel.charges()[number].limit, MEBI)

    async def test_elsewhere(self) -> None:
        """A directory outside of the volume is refused, on the same file system or not."""
        for top in (kernel.mount(), Path(os.environ["TMPDIR"])):
            path = top / uuid4().hex
            path.mkdir()
            self.addCleanup(path.rmdir)
            await self.refused(path)
        await self.refused(self.volume)

    async def test_swapped(self) -> None:
        """
        So is one that a link leads to, also while link and directory take turns: what is changed is
        beneath the volume.
        """
        outside = kernel.mount() / uuid4().hex
        inner = outside / "inner"
        inner.mkdir(parents=True)
        self.addCleanup(shutil.rmtree, outside)
        way, other = self.volume / "way", self.volume / "other"
        way.mkdir()
        other.symlink_to(outside)
        (way / "inner").mkdir()
        ended = threading.Event()

        def swap() -> None:
            spare = self.volume / "spare"
            while not ended.is_set():
                os.rename(way, spare)
                os.rename(other, way)
                os.rename(spare, other)

        swapper = threading.Thread(target=swap)
        swapper.start()
        taken = refused = 0
        try:
            while taken < 20 or refused < 20:
                try:
                    descriptor = os.open(way / "inner", os.O_RDONLY)
                except OSError:
                    continue
                try:
                    await self.projects.allocate(descriptor)
                    taken += 1
                except NotManaged:
                    refused += 1
                finally:
                    os.close(descriptor)
        finally:
            ended.set()
            swapper.join()
        self.assertEqual(kernel.project(inner).id, 0)
        for path in self.agent.recorded():
            self.assertTrue(path.startswith(f"{self.volume}/"), path)

    async def test_not_a_directory(self) -> None:
        """A file is refused, and a descriptor that only names something."""
        (self.folder / "file").touch()
        await self.refused(self.folder / "file")
        with self.assertRaises(NotManaged):
            await self.projects.allocate(self.open(self.folder, os.O_PATH))
        self.assertEqual(kernel.project(self.folder).id, 0)

    async def test_drifted(self) -> None:
        """The limit of another folder cannot be changed by taking over its project."""
        victim = self.make_folder()
        await self.limited(self.folder)
        number = await self.limited(victim)
        kernel.set_project(self.folder, number)
        with self.assertRaises(Drifted):
            await self.projects.set_limit(self.open(self.folder), Limit(64 * MEBI))
        self.assertEqual(kernel.charges()[number].limit, MEBI)


class ReconcileTests(AgentCase):
    """Reconciling, with no more privilege than the agent has."""

    async def test_asked(self) -> None:
        """What was found is told to who asks, and repaired."""
        number = await self.limited(self.folder)
        kernel.set_project(self.folder, 5)
        lines = await self.projects.reconcile()
        self.assertTrue(any(str(self.folder) in line for line in lines), lines)
        self.assertEqual(kernel.project(self.folder).id, number)

    async def test_closed(self) -> None:
        """Folders that nobody but their owners may enter do not keep it from the others."""
        closed, drifted = self.make_folder(0o700), self.folder
        for path in (closed, drifted):
            await self.limited(path)
        number = kernel.project(drifted).id
        kernel.set_project(drifted, 5)
        await self.projects.reconcile()
        self.assertEqual(kernel.project(drifted).id, number)

    async def test_by_hand(self) -> None:
        """So does the command, beside the agent that runs."""
        number = await self.limited(self.folder)
        kernel.set_project(self.folder, 5)
        done = subprocess.run(self.agent.command("--reconcile"), capture_output=True, text=True)
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertIn(str(self.folder), done.stdout + done.stderr)
        self.assertEqual(kernel.project(self.folder).id, number)

    async def test_after_restart(self) -> None:
        """An agent that was started again goes on where the last one was."""
        descriptor = self.open(self.folder)
        number = await self.limited(self.folder)
        self.agent.stop()
        self.agent.start()
        self.assertEqual(await self.projects.allocate(descriptor), number)
        self.assertEqual((await self.projects.account(descriptor)).limit, Limit(MEBI))

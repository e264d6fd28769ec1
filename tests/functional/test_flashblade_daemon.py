"""
The daemon with a volume on a FlashBlade: its own process, a simulated array on a port, and files in
a directory instead of the NFS mount.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Coroutine
from pathlib import Path
from signal import SIGTERM
from typing import Any

from twisted.internet import reactor
from twisted.internet.defer import Deferred, gatherResults
from twisted.internet.threads import deferToThread
from twisted.trial.unittest import TestCase

from tests.engines.flashblade.array import API_TOKEN, example
from tests.engines.flashblade.rapidfile import install
from tests.engines.flashblade.simulator import Held, Simulator, error
from tests.functional.daemon import Daemon, select_pause

TIB = 1 << 40

#: Seconds after which something has not come about.
GIVE_UP = 60.0


class DaemonTests(TestCase):
    async def setUp(self) -> None:
        self.root = Path(self.mktemp()).resolve()
        self.root.mkdir(parents=True)
        self.simulator = Simulator(reactor, example(reactor.seconds), self.root)
        await self.simulator.start()
        self.addCleanup(lambda: Deferred.fromCoroutine(self.simulator.stop()))
        self.array = self.simulator.array

    async def start(
        self,
        token: str = API_TOKEN,
        name: str = "FB-NFS1",
        more: str = "",
        processes: int = 1,
        commands: Path | None = None,
        authority: Path | None = None,
        user: int = -1,
    ) -> Daemon:
        path = os.environ["PATH"]
        daemon = Daemon(
            self.root,
            backend="purestorage",
            processes=processes,
            environ={"PATH": f"{commands}:{path}" if commands else path},
            volume_settings=(
                "[volume.local.options]\n"
                f'purity_endpoint = "{self.simulator.url}"\n'
                f'purity_ca_file = "{authority or self.simulator.ca}"\n'
                f'purity_api_token = "{token}"\n'
                f'purity_fs_name = "{name}"\n'
                f"{more}\n"
            ),
        )
        text = daemon.config.read_text()
        for key in ("user", "group"):
            text = text.replace(f"{key} = -1\n", f"{key} = {user}\n")
        daemon.config.write_text(text)
        for path in daemon.volumes.values():
            path.chmod(0o777)
        await deferToThread(daemon.start)
        self.addCleanup(self.end, daemon)
        return daemon

    async def end(self, daemon: Daemon) -> None:
        if daemon.process is not None and daemon.process.poll() is None:
            await deferToThread(daemon.stop)
        log = daemon.log.read_text()
        self.assertNotIn(API_TOKEN, log)
        for session in self.array.sessions:
            self.assertNotIn(session, log)
        self.assertNotIn("Traceback", log)
        self.assertNotIn("HTTP11ClientFactory", log)

    async def ask(
        self, daemon: Daemon, method: str, path: str, volume: str = "local", **params: Any
    ) -> Any:
        return await deferToThread(daemon.manager, method, path, {"volume": volume, **params})

    async def capabilities(self, daemon: Daemon) -> list[str]:
        volumes = await deferToThread(daemon.manager, "GET", "/volumes")
        [volume] = [one for one in volumes["volumes"] if one["name"] == "local"]
        self.assertEqual(volume["backend"], "purestorage")
        found: list[str] = volume["capabilities"]
        return found

    async def refusal(self, call: Coroutine[Any, Any, Any]) -> str:
        with self.assertRaises(RuntimeError) as caught:
            await call
        return str(caught.exception)

    async def test_manager(self) -> None:
        """What managers ask of the volume is what the array says."""
        daemon = await self.start()
        self.assertEqual(await self.capabilities(daemon), ["vfolder", "metric"])
        info = await self.ask(daemon, "GET", "/volume/hwinfo")
        self.assertEqual((info["status"], info["status_info"]), ("healthy", None))
        self.assertEqual(info["metadata"]["name"], "fbsim01")
        self.assertEqual({type(value) for value in info["metadata"].values()}, {str})
        self.assertEqual(
            await self.ask(daemon, "GET", "/volume/performance-metric"),
            {
                "metric": {
                    "iops_read": 120,
                    "iops_write": 30,
                    "io_bytes_read": 1_500_000,
                    "io_bytes_write": 320_000,
                    "io_usec_read": 410,
                    "io_usec_write": 880,
                }
            },
        )
        self.assertEqual(
            await self.ask(daemon, "GET", "/folder/fs-usage"),
            {"capacity_bytes": 10 * TIB, "used_bytes": 3 * TIB},
        )

    async def test_quota(self) -> None:
        """Without a vfolder the quota is that of the file system; with one it is refused."""
        for version in ("1.8", "2.9"):
            daemon = await self.start(more=f'purity_api_version = "{version}"')
            for size, expected in (("5t", 5 * TIB), (0, 0), (10 * TIB, 10 * TIB)):
                await self.ask(daemon, "PATCH", "/volume/quota", size_bytes=size)
                self.assertEqual(await self.ask(daemon, "GET", "/volume/quota"), expected)
                self.assertEqual(self.array.find("FB-NFS1").provisioned or 0, expected)
            vfid = await deferToThread(daemon.folder)
            for method, params in (("GET", {}), ("PATCH", {"size_bytes": 1})):
                said = await self.refusal(
                    self.ask(daemon, method, "/volume/quota", vfid=vfid, **params)
                )
                self.assertIn(": 400 ", said)
                self.assertIn("unsupported-operation", said)
                self.assertIn("single vfolder", said)
            await deferToThread(daemon.stop)

    async def test_without_array(self) -> None:
        """While the array does not answer, it is unavailable, and files are served all the same."""
        held = Held()
        self.simulator.plan(held, None)
        daemon = await self.start(more="deadline = 1")
        vfid = await deferToThread(daemon.folder)
        self.assertTrue(daemon.path(vfid).is_dir())
        made = await self.ask(daemon, "POST", "/folder/file/mkdir", vfid=vfid, relpath="a")
        self.assertEqual(made["results"]["failed"], [])
        await self.ask(
            daemon,
            "POST",
            "/folder/clone",
            src_volume="local",
            src_vfid=vfid,
            dst_volume="local",
            dst_vfid="0" * 31 + "1",
        )
        info = await self.ask(daemon, "GET", "/volume/hwinfo")
        self.assertEqual(info["status"], "unavailable")
        self.assertIn("does not answer within 1 seconds", info["status_info"])
        for path in ("/folder/fs-usage", "/volume/performance-metric", "/volume/quota"):
            said = await self.refusal(self.ask(daemon, "GET", path))
            self.assertIn(": 503 ", said)
            self.assertIn("volume local: the array", said)
        self.simulator.mend()
        self.assertEqual((await self.ask(daemon, "GET", "/volume/hwinfo"))["status"], "healthy")

    async def test_wrong_configuration(self) -> None:
        """A token or a name that the array does not know is a line in the log that says so."""
        for given, key in (
            ({"token": "T-bad"}, "purity_api_token"),
            ({"name": "no"}, "purity_fs_name"),
        ):
            daemon = await self.start(**given)
            await deferToThread(daemon.folder)
            info = await self.ask(daemon, "GET", "/volume/hwinfo")
            self.assertEqual(info["status"], "unavailable" if "token" in given else "healthy")
            said = await self.refusal(self.ask(daemon, "GET", "/folder/fs-usage"))
            self.assertIn(key, said)
            await deferToThread(daemon.stop)
            log = daemon.log.read_text()
            [line] = [one for one in log.splitlines() if "Files are served" in one and key in one]
            self.assertIn('"level": "warn"', line)

    async def test_error(self) -> None:
        """An error of the array is told to the manager in the array's words."""
        daemon = await self.start()
        await self.ask(daemon, "GET", "/folder/fs-usage")
        self.simulator.plan(error(500, "Flux is out of phase."), 1, "/file-systems")
        said = await self.refusal(self.ask(daemon, "GET", "/folder/fs-usage"))
        self.assertIn(": 500 ", said)
        self.assertIn("Flux is out of phase.", said)

    async def test_one_login(self) -> None:
        """Ten requests with an expired session cause one login."""
        daemon = await self.start()
        await self.ask(daemon, "GET", "/volume/quota")
        before = self.array.logins
        self.array.expire()
        answers = await gatherResults(
            [Deferred.fromCoroutine(self.ask(daemon, "GET", "/volume/quota")) for _ in range(10)],
            consumeErrors=True,
        )
        self.assertEqual(answers, [10 * TIB] * 10)
        self.assertEqual(self.array.logins, before + 1)

    async def test_stop(self) -> None:
        """A daemon that ends leaves no session on the array."""
        daemon = await self.start()
        await self.ask(daemon, "GET", "/volume/quota")
        self.assertEqual(len(self.array.sessions), 1)
        self.assertEqual(await deferToThread(daemon.stop), -SIGTERM)
        self.assertEqual(self.array.sessions, {})

    async def test_toolkit(self) -> None:
        """With the RapidFile Toolkit on its path the daemon counts by that, and says so."""
        commands = self.root / "bin"
        commands.mkdir()
        install(commands)
        daemon = await self.start(commands=commands)
        vfid = await deferToThread(daemon.folder)
        (daemon.path(vfid) / "file").write_bytes(bytes(1000))
        await self.counting(daemon)
        self.assertEqual(await self.capabilities(daemon), ["vfolder", "metric", "fast-scan"])
        usage = await self.ask(daemon, "GET", "/folder/usage", vfid=vfid)
        self.assertEqual(usage, {"file_count": 1, "used_bytes": 1000})

    async def test_workers(self) -> None:
        """Several processes have a session each, and leave none."""
        daemon = await self.start(processes=2)
        answers = await gatherResults(
            [Deferred.fromCoroutine(self.ask(daemon, "GET", "/volume/quota")) for _ in range(20)],
            consumeErrors=True,
        )
        self.assertEqual(answers, [10 * TIB] * 20)
        self.assertLessEqual(self.array.logins, 2)
        self.assertEqual(await deferToThread(daemon.stop), -SIGTERM)
        self.assertEqual(self.array.sessions, {})

    async def test_other_user(self) -> None:
        """A daemon that is root no more says so if the authority is hidden from it, and serves
        files all the same."""
        place = tempfile.TemporaryDirectory(prefix="flashblade-")
        self.addCleanup(place.cleanup)
        self.root = Path(place.name).resolve()
        self.root.chmod(0o755)
        authority = self.root / "authority.pem"
        authority.write_bytes(self.simulator.ca.read_bytes())
        authority.chmod(0o600)
        daemon = await self.start(authority=authority, user=54321)
        vfid = await deferToThread(daemon.folder)
        self.assertEqual(daemon.path(vfid).stat().st_uid, 54321)
        info = await self.ask(daemon, "GET", "/volume/hwinfo")
        self.assertEqual(info["status"], "unavailable")
        self.assertIn(f"purity_ca_file: {authority}: Permission denied", info["status_info"])
        authority.chmod(0o644)
        info = await self.ask(daemon, "GET", "/volume/hwinfo")
        self.assertEqual(info["status"], "healthy")

    async def counting(self, daemon: Daemon) -> None:
        """Wait until a daemon counts by commands."""
        deadline = time.monotonic() + GIVE_UP
        while "fast-scan" not in await self.capabilities(daemon):
            self.assertLess(time.monotonic(), deadline, daemon.log.read_text())
            await deferToThread(select_pause)

    async def test_stop_without_answer(self) -> None:
        """One that ends while the array does not answer ends all the same."""
        daemon = await self.start()
        await self.ask(daemon, "GET", "/volume/quota")
        self.simulator.plan(Held(), None)
        self.assertEqual(await deferToThread(daemon.stop), -SIGTERM)

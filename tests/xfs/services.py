"""
The agent and the daemon as an operator runs them: processes of two users.
"""

from __future__ import annotations

import atexit
import json
import os
import signal
import socket
import subprocess
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path

from tests.functional.daemon import CHECKOUT, START_DEADLINE, TWISTD, Daemon, select_pause
from tests.xfs import kernel

#: Who runs the daemon, and owns the vfolders.
USER = 1234
#: What the agent may do: it is root without the rest of root's rights.
CAPABILITIES = ("sys_admin", "fowner")
#: Volumes that the agents have beside that of the daemons.
SPARE = 150


class Agent:
    """
    One ``twistd storage-proxy-xfs-agent``.

    :param root: an existing directory, which gets the configuration, the socket and the log.
    :param volumes: the directories of the volumes.
    :param registry: where ``projects`` and ``projid`` are, when they are another agent's too.
    :param ids: the first and the last project id that it gives.
    """

    def __init__(
        self,
        root: Path,
        volumes: Sequence[Path],
        registry: Path | None = None,
        ids: tuple[int, int] = (10_000, 99_999),
    ) -> None:
        self.root = root
        self.socket = root / "socket"
        self.log = root / "agent.log"
        self.registry = registry or root
        self.process: subprocess.Popen[bytes] | None = None
        self.config = root / "agent.toml"
        self.config.write_text(
            # As TOML has lists, too.
            f"volumes = {json.dumps(list(map(str, volumes)))}\n"
            f"users = [0, {USER}]\n"
            f'socket = "{self.socket}"\n'
            # Whom it serves it decides itself.
            "socket-mode = 0o666\n"
            f'projects = "{self.registry / "projects"}"\n'
            f'projid = "{self.registry / "projid"}"\n'
            f"ids = {list(ids)}\n"
        )

    def command(self, *more: str) -> list[str]:
        """The command line."""
        kept = ",".join(f"+{name}" for name in CAPABILITIES)
        become = ["setpriv", f"--bounding-set=-all,{kept}", "--no-new-privs"]
        twistd = [TWISTD, "-n", "--pidfile=", "storage-proxy-xfs-agent"]
        return [*become, *twistd, "--config", str(self.config), *more]

    def start(self) -> None:
        """Start the process, and return when it answers."""
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                self.command(),
                env={**os.environ, "PYTHONPATH": str(CHECKOUT)},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        for _ in range(int(START_DEADLINE / 0.05)):
            with socket.socket(socket.AF_UNIX) as visitor:
                try:
                    visitor.connect(str(self.socket))
                    return
                except OSError:
                    if self.process.poll() is not None:
                        break
                    select_pause()
        raise RuntimeError(self.log.read_text())

    def stop(self) -> int:
        """Ask the process to end, wait for it, and return its exit status."""
        assert self.process is not None
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(timeout=60)

    def recorded(self) -> dict[str, int]:
        """Directories that the registry has, with their projects."""
        return recorded(self.registry)

    def named(self) -> set[int]:
        """The projects that have names."""
        lines = (self.registry / "projid").read_text().splitlines()
        return {int(line.rpartition(":")[2]) for line in lines}


def recorded(registry: Path) -> dict[str, int]:
    """Directories in the file of projects, with their projects."""
    try:
        text = (registry / "projects").read_text(errors="surrogateescape")
    except FileNotFoundError:
        return {}
    found = (line.partition(":") for line in text.splitlines() if not line.startswith("#"))
    return {path: int(number) for number, _, path in found}


@cache
def directory(name: str) -> Path:
    """A directory of this machine, which every user can enter."""
    path = Path("/run/services", name)
    path.mkdir(parents=True)
    return path


@cache
def volume(name: str) -> Path:
    """A volume of the daemon's user."""
    path = kernel.mount() / name
    path.mkdir()
    os.chown(path, USER, USER)
    return path


@cache
def spare_volumes() -> Iterator[Path]:
    """Volumes that the agents have beside that of the daemons, each of them once."""
    return iter([volume(f"spare-{number}") for number in range(SPARE)])


@cache
def agent(name: str = "one") -> Agent:
    """An agent that runs until the tests end; all of them share volume and registry."""
    volumes = [volume("local"), *(volume(f"spare-{number}") for number in range(SPARE))]
    found = Agent(directory(f"agent-{name}"), volumes, directory("registry"))
    found.start()
    atexit.register(found.stop)
    return found


@cache
def daemon(name: str = "one") -> Daemon:
    """A daemon of an ordinary user that runs until the tests end, and its agent."""
    found = Daemon(
        directory(f"daemon-{name}"),
        mounts=volume("local").parent,
        volumes=("local",),
        volume_settings=f'options = {{ agent = "{agent(name).socket}" }}',
        backend="xfs",
        user=USER,
    )
    found.start()
    atexit.register(found.stop)
    return found

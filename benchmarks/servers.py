"""
The Storage Proxy and its peers: what is started, how it is asked for a file, and how it ends.
"""

from __future__ import annotations

import http.client
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any
from uuid import uuid4

import heartbeat
from accounting import tree
from clients import HOST, Request, request

CHECKOUT = Path(__file__).resolve().parent.parent
HERE = Path(__file__).resolve().parent
MANAGER_SECRET = "manager-secret-of-the-benchmark"
TOKEN_SECRET = "token-secret-of-the-benchmark-0123456789abcdef"
AUTH = "X-BackendAI-Storage-Auth-Token"
ORIGINAL = "backend.ai-storage-proxy==22.3.0"

_START = 60.0
_STOP = 20.0


class NotHere(Exception):
    """A peer cannot be had on this machine; the text says why."""


def free_port() -> int:
    """
    A TCP port of the loopback interface that nobody listens on, and that the kernel does not give
    to a connection either (ip_local_port_range).
    """
    while True:
        port = random.randrange(20000, 32000)
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            with suppress(OSError):
                probe.bind((HOST, port))
                return port


class Server:
    """
    A process, and those that it starts. It gets a signal when the benchmark itself is killed.

    :param directory: for its configuration and its log.
    """

    name = ""
    #: Added to the environment.
    environment: dict[str, str] = {}

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        directory.mkdir(exist_ok=True)
        self.log = directory / "log"
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        """Of its first process."""
        assert self._process is not None
        return self._process.pid

    def command(self) -> list[str]:
        """What is run."""
        raise NotImplementedError

    def ports(self) -> list[int]:
        """What it listens on."""
        raise NotImplementedError

    def start(self) -> None:
        """
        Return when it answers.

        :raises RuntimeError: with its log, when it does not.
        """
        with self.log.open("wb") as log:
            self._process = subprocess.Popen(
                ["setpriv", "--pdeathsig", "TERM", *self.command()],
                env={**os.environ, **self.environment},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        deadline = time.monotonic() + _START
        for port in self.ports():
            while True:
                try:
                    socket.create_connection((HOST, port), timeout=1).close()
                    break
                except OSError:
                    if self._process.poll() is not None or time.monotonic() > deadline:
                        self.stop()
                        raise RuntimeError(self.log.read_text(errors="replace")) from None
                    time.sleep(0.02)

    def stop(self) -> None:
        """End it and whatever it has started."""
        process, self._process = self._process, None
        if process is None:
            return
        process.terminate()
        with suppress(subprocess.TimeoutExpired):
            process.wait(_STOP)
        with suppress(ProcessLookupError):
            # It began a session of its own (setsid(2)), so that all of it is one group.
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


class Proxy(Server):
    """
    A Storage Proxy, ours or the original.

    :param volumes: names, and the directories that they are.
    :param settings: for ``[volume.NAME.options]`` of each: TOML lines.
    :param processes: ``num-proc``.
    """

    def __init__(
        self,
        directory: Path,
        volumes: dict[str, Path],
        settings: dict[str, str],
        processes: int = 1,
    ) -> None:
        super().__init__(directory)
        self.volumes = volumes
        self.client_port = free_port()
        self.manager_port = free_port()
        self.config = directory / "storage-proxy.toml"
        self.config.write_text(
            '[etcd]\nnamespace = "local"\n'
            f'[storage-proxy]\nnode-id = "i-benchmark"\nnum-proc = {processes}\n'
            f'secret = "{TOKEN_SECRET}"\nsession-expire = "1d"\nuser = -1\ngroup = -1\n'
            f"[api.client]\nssl-enabled = false\n"
            f'service-addr = {{ host = "{HOST}", port = {self.client_port} }}\n'
            f"[api.manager]\nssl-enabled = false\n"
            f'service-addr = {{ host = "{HOST}", port = {self.manager_port} }}\n'
            f'secret = "{MANAGER_SECRET}"\n'
            + "".join(
                f'[volume.{name}]\nbackend = "vfs"\npath = "{path}"\n'
                + (f"[volume.{name}.options]\n{settings[name]}\n" if settings.get(name) else "")
                for name, path in volumes.items()
            )
            + "[debug]\n[logging]\n[logging.console]\n[logging.pkg-ns]\n"
        )

    def ports(self) -> list[int]:
        """Of clients, and of the Manager."""
        return [self.client_port, self.manager_port]

    def rpc(
        self, method: str, path: str, params: dict[str, Any], least: int = 0, keep: bool = False
    ) -> Request:
        """A call of the manager API, as a request of a load."""
        return request(
            self.manager_port,
            method,
            path,
            [(AUTH, MANAGER_SECRET), ("Content-Type", "application/json")],
            json.dumps(params).encode(),
            least=least,
            keep=keep,
        )

    def call(self, method: str, path: str, params: dict[str, Any]) -> Any:
        """
        Call the manager API, and wait.

        :raises RuntimeError: with the answer, when it is an error.
        """
        connection = http.client.HTTPConnection(HOST, self.manager_port, timeout=600)
        headers = {AUTH: MANAGER_SECRET, "Content-Type": "application/json"}
        try:
            connection.request(method, path, json.dumps(params), headers)
            answer = connection.getresponse()
            content = answer.read()
        finally:
            connection.close()
        if answer.status >= 300:
            raise RuntimeError(f"{method} {path}: {answer.status} {content.decode()}")
        return json.loads(content) if content else None

    def create(self, volume: str) -> str:
        """Make a vfolder and return its id."""
        vfid = str(uuid4())
        self.call("POST", "/folder/create", {"volume": volume, "vfid": vfid})
        return vfid

    def path(self, volume: str, vfid: str) -> Path:
        """Where a vfolder lies on disk."""
        digits = vfid.replace("-", "")
        return self.volumes[volume] / digits[:2] / digits[2:4] / digits[4:]

    def download(self, volume: str, vfid: str, relpath: str) -> tuple[int, str]:
        """The port and the target of a GET for a file."""
        params = {"volume": volume, "vfid": vfid, "relpath": relpath}
        token = self.call("POST", "/folder/file/download", params)["token"]
        return self.client_port, f"/download?token={token}"


class StorageProxy(Proxy):
    """The daemon of this checkout."""

    name = "ours"

    @property
    def hearts(self) -> Path:
        """The directory of the heartbeats' files."""
        return self.directory / "hearts"

    def start(self) -> None:
        """
        Return when all of its processes serve. The ports are open before that, but an answer comes
        when the first one does, and each has a heart as soon as its reactor runs.
        """
        super().start()
        self.call("GET", "/volume/hwinfo", {"volume": next(iter(self.volumes))})
        deadline = time.monotonic() + _START
        while not all((self.hearts / str(pid)).exists() for pid in tree(self.pid)):
            if time.monotonic() > deadline:
                raise RuntimeError("not every process of the daemon has a reactor")
            time.sleep(0.02)

    def command(self) -> list[str]:
        """``twistd``, with a heart."""
        self.hearts.mkdir(exist_ok=True)
        self.environment = {
            "PYTHONPATH": f"{CHECKOUT}:{HERE}",
            heartbeat.VARIABLE: str(self.hearts),
        }
        twistd = str(Path(sys.executable).with_name("twistd"))
        return [twistd, "-n", "--pidfile=", "storage-proxy", "-f", str(self.config)]


class Original(Proxy):
    """
    The original from the package index.

    :param python: of the environment that it is installed in.
    """

    name = "original"

    def __init__(self, directory: Path, volumes: dict[str, Path], python: Path) -> None:
        super().__init__(directory, volumes, {})
        self._python = python

    def command(self) -> list[str]:
        """The original's server."""
        return [str(self._python), "-m", "ai.backend.storage.server", "-f", str(self.config)]


class Web(Server):
    """
    A web server that serves a directory, and takes files by ``PUT /bodies/NAME``.

    :param served: the directory.
    """

    def __init__(self, directory: Path, served: Path) -> None:
        super().__init__(directory)
        self.port = free_port()
        self.served = served
        self.bodies = served / f"bodies-{self.name}"
        self.bodies.mkdir(exist_ok=True)

    def ports(self) -> list[int]:
        """The one."""
        return [self.port]


class Nginx(Web):
    """
    Debian's nginx, one worker. Bodies come by WebDAV's PUT: nginx writes each once, to a temporary
    file beside its destination, and renames it.
    """

    name = "nginx"

    def command(self) -> list[str]:
        """nginx with a configuration of its own."""
        program = shutil.which("nginx", path=f"{os.environ.get('PATH', '')}:/usr/sbin")
        if program is None:
            raise NotHere("nginx is not installed")
        config = self.directory / "nginx.conf"
        temporary = self.bodies / "temporary"
        config.write_text(
            ("user root;\n" if os.geteuid() == 0 else "")
            + f"worker_processes 1;\ndaemon off;\npid {self.directory}/pid;\n"
            f"error_log {self.log} warn;\n"
            "events { worker_connections 4096; }\n"
            "http {\n"
            f"  access_log {self.directory}/access.log;\n"
            "  default_type application/octet-stream;\n"
            "  sendfile on; tcp_nopush on; keepalive_requests 1000000;\n"
            "  client_max_body_size 0; client_body_buffer_size 1m;\n"
            f"  client_body_temp_path {temporary};\n"
            + "".join(
                f"  {kind}_temp_path {self.directory}/{kind};\n"
                for kind in ("proxy", "fastcgi", "uwsgi", "scgi")
            )
            + f"  server {{\n    listen {HOST}:{self.port} backlog=1024;\n"
            f"    root {self.served};\n"
            f"    location /bodies/ {{ alias {self.bodies}/; dav_methods PUT; }}\n"
            "  }\n}\n"
        )
        return [program, "-c", str(config), "-e", str(self.log)]


class PlainTwisted(Web):
    """``static.File`` and ``request.content``, with its temporary files on the same disk."""

    name = "twisted"

    def command(self) -> list[str]:
        """See plain.py."""
        self.environment = {"TMPDIR": str(self.bodies)}
        return [sys.executable, str(HERE / "plain.py"), str(self.port)] + [
            str(self.served),
            str(self.bodies),
        ]


def original_python(cache: Path, install: bool) -> Path:
    """
    The interpreter of an environment with the original.

    :param cache: the directory that the environment is kept in.
    :param install: whether it may be made.
    :raises NotHere: when there is none.
    """
    environment = cache / f"{ORIGINAL.replace('==', '-')}"
    python = environment / "bin" / "python"
    if (environment / "complete").exists() and python.exists():
        return python
    if not install:
        raise NotHere("it is not in the cache, and a quick run installs nothing")
    shutil.rmtree(environment, ignore_errors=True)
    cache.mkdir(parents=True, exist_ok=True)
    for step in (
        [_python310(), "-m", "venv", str(environment)],
        [str(python), "-m", "pip", "install", "--quiet", ORIGINAL],
        [str(python), "-c", "import ai.backend.storage.server"],
    ):
        done = subprocess.run(step, capture_output=True, text=True)
        if done.returncode:
            raise NotHere(f"{' '.join(step)}: {done.stderr.strip()[-500:]}")
    (environment / "complete").touch()
    return python


def _python310() -> str:
    places = [
        shutil.which("python3.10"),
        *sorted(Path.home().glob(".pyenv/versions/3.10*/bin/python3.10"), reverse=True),
    ]
    for place in places:
        # What pyenv puts on the path is a script that may refuse.
        if place and not subprocess.run([place, "-c", ""], capture_output=True).returncode:
            return str(place)
    raise NotHere("it needs Python 3.10, which is not here")

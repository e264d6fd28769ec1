"""
The daemon as an operator runs it: its own process, a configuration file, real ports.
"""

from __future__ import annotations

import http.client
import json
import os
import random
import signal
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from uuid import uuid4

import jwt

MANAGER_SECRET = "manager-secret-of-the-tests"
TOKEN_SECRET = "token-secret-of-the-tests-0123456789abcdef"
AUTH = "X-BackendAI-Storage-Auth-Token"
START_DEADLINE = 30.0
CHECKOUT = Path(__file__).parents[2]
TWISTD = str(Path(sys.executable).with_name("twistd"))


def free_port() -> int:
    """
    A TCP port of the loopback interface that nobody listens on, and that the kernel does not give
    to the next connection either (ip_local_port_range).
    """
    while True:
        port = random.randrange(20000, 32000)
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
        return port


class Daemon:
    """
    One ``twistd storage-proxy`` with its volumes below a directory.

    :param root: an existing directory, which gets the volumes, the configuration and the log.
    :param volumes: the names of the volumes to make.
    :param settings: TOML lines added to the ``[storage-proxy]`` table.
    :param manager_settings: TOML lines added to the ``[api.manager]`` table.
    :param client_settings: TOML lines added to the ``[api.client]`` table.
    :param volume_settings: TOML lines added to the table of the first volume.
    :param mounts: where the volumes lie, when they are another daemon's too.
    :param tls: a certificate chain and its key (PEM files), when both ports are to speak TLS.
    :param processes: how many serve.
    :param backend: what the first volume is; the others are vfs.
    :param environ: what its environment has besides ours.
    :param user: whose process it is by its number, without any privilege; None for ours.
    """

    def __init__(
        self,
        root: Path,
        volumes: tuple[str, ...] = ("local", "second"),
        settings: str = "",
        manager_settings: str = "",
        tls: tuple[Path, Path] | None = None,
        client_settings: str = "",
        volume_settings: str = "",
        processes: int = 1,
        mounts: Path | None = None,
        backend: str = "vfs",
        user: int | None = None,
        environ: Mapping[str, str] | None = None,
    ) -> None:
        self.root = root
        self.client_port = free_port()
        self.manager_port = free_port()
        self.volumes = {name: (mounts or root) / name for name in volumes}
        self.process: subprocess.Popen[bytes] | None = None
        self.log = root / "daemon.log"
        self.tls = tls
        self.user = user
        self.environ = {**os.environ, "PYTHONPATH": str(CHECKOUT), **(environ or {})}
        for path in self.volumes.values():
            path.mkdir(exist_ok=True)
            if user is not None:
                os.chown(path, user, user)
        ssl = "ssl-enabled = false\n"
        if tls is not None:
            ssl = f'ssl-enabled = true\nssl-cert = "{tls[0]}"\nssl-privkey = "{tls[1]}"\n'
        self.config = root / "storage-proxy.toml"
        self.config.write_text(
            "[etcd]\n"
            'namespace = "local"\n'
            "[storage-proxy]\n"
            'node-id = "i-tests"\n'
            f"num-proc = {processes}\n"
            f'secret = "{TOKEN_SECRET}"\n'
            'session-expire = "1d"\n'
            "user = -1\n"
            "group = -1\n"
            f"{settings}\n"
            "[api.client]\n"
            f'service-addr = {{ host = "127.0.0.1", port = {self.client_port} }}\n'
            f"{ssl}"
            f"{client_settings}\n"
            "[api.manager]\n"
            f'service-addr = {{ host = "127.0.0.1", port = {self.manager_port} }}\n'
            f'secret = "{MANAGER_SECRET}"\n'
            f"{ssl}"
            f"{manager_settings}\n"
            + "".join(
                f"[volume.{name}]\n"
                f'backend = "{backend if name == volumes[0] else "vfs"}"\n'
                f'path = "{path}"\n' + (f"{volume_settings}\n" if name == volumes[0] else "")
                for name, path in self.volumes.items()
            )
            + "[debug]\n[logging]\n[logging.pkg-ns]\n"
        )

    def start(self) -> None:
        """Start the process and return when both ports answer."""
        command = [TWISTD, "-n", "--pidfile=", "storage-proxy", "--config", str(self.config)]
        if self.user is not None:
            command = unprivileged(self.user) + command
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                command,
                env=self.environ,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        for port in (self.client_port, self.manager_port):
            try:
                connected(port, self.process)
            except OSError:
                raise RuntimeError(self.log.read_text()) from None

    def stop(self) -> int:
        """Ask the process to end, wait for it, and return its exit status."""
        assert self.process is not None
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(timeout=60)

    def kill(self) -> None:
        """End the process as a crash would."""
        assert self.process is not None
        self.process.send_signal(signal.SIGKILL)
        self.process.wait(timeout=60)

    def manager(self, method: str, path: str, params: dict[str, Any] | None = None) -> Any:
        """
        Call the manager API as the Manager does: the secret in a header, the parameters as JSON.

        :return: the decoded JSON of the answer, None when it has no body.
        :raises RuntimeError: for any status of 400 and above, with the answer's body.
        """
        connection: http.client.HTTPConnection
        if self.tls is None:
            connection = http.client.HTTPConnection("127.0.0.1", self.manager_port, timeout=60)
        else:
            context = ssl.create_default_context(cafile=str(self.tls[0]))
            connection = http.client.HTTPSConnection(
                "127.0.0.1", self.manager_port, timeout=60, context=context
            )
        body = None if params is None else json.dumps(params)
        headers = {AUTH: MANAGER_SECRET}
        if body is not None:
            headers["Content-Type"] = "application/json"
        try:
            connection.request(method, path, body, headers)
            answer = connection.getresponse()
            content = answer.read()
        finally:
            connection.close()
        if answer.status >= 400:
            raise RuntimeError(f"{method} {path}: {answer.status} {content.decode()}")
        return json.loads(content) if content else None

    def folder(self, volume: str = "local") -> str:
        """Make a vfolder and return its id."""
        vfid = str(uuid4())
        self.manager("POST", "/folder/create", {"volume": volume, "vfid": vfid})
        return vfid

    def path(self, vfid: str, volume: str = "local") -> Path:
        """Where a vfolder with a bare UUID as its id lies on disk."""
        digits = vfid.replace("-", "")
        return self.volumes[volume] / digits[:2] / digits[2:4] / digits[4:]

    def upload_url(self, vfid: str, relpath: str, size: int, volume: str = "local") -> str:
        """Open an upload session and return the URL that a client is given."""
        answer = self.manager(
            "POST",
            "/folder/file/upload",
            {"volume": volume, "vfid": vfid, "relpath": relpath, "size": size},
        )
        return f"{self.client_url}/upload?token={answer['token']}"

    def download_url(self, vfid: str, relpath: str, volume: str = "local") -> str:
        """Ask for a download token and return the URL that a client is given."""
        answer = self.manager(
            "POST", "/folder/file/download", {"volume": volume, "vfid": vfid, "relpath": relpath}
        )
        return f"{self.client_url}/download?token={answer['token']}"

    @property
    def client_url(self) -> str:
        """The base URL of the client API, without a slash at its end."""
        scheme = "http" if self.tls is None else "https"
        return f"{scheme}://127.0.0.1:{self.client_port}"


def unprivileged(user: int) -> list[str]:
    """The beginning of a command that is to be run by another user, without any privilege."""
    return [
        "setpriv",
        f"--reuid={user}",
        f"--regid={user}",
        "--clear-groups",
        "--bounding-set=-all",
        "--no-new-privs",
    ]


def connected(port: int, process: subprocess.Popen[bytes]) -> None:
    """
    Return when a process that was started has opened its port.

    :raises OSError: when it has ended, or does not.
    """
    deadline = time.monotonic() + START_DEADLINE
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
            return
        except OSError:
            if process.poll() is not None or time.monotonic() > deadline:
                raise
            select_pause()


def claims(token: str) -> dict[str, Any]:
    """The verified claims of a token that the daemon has issued."""
    return jwt.decode(token, TOKEN_SECRET, algorithms=["HS256"])


def select_pause() -> None:
    """Let a twentieth of a second go by while another process starts."""
    os.sched_yield()
    time.sleep(0.05)  # fault: nothing to wait on before the port is open

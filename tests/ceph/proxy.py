"""
HAProxy with the sample of ``etc/haproxy.cfg``.
"""

from __future__ import annotations

import subprocess
from pathlib import Path
from urllib.parse import urlsplit

from tests.functional.daemon import CHECKOUT, Daemon, connected, free_port

#: How the sample calls the daemons: a name and an address.
_SERVERS = (("one", "192.0.2.1"), ("two", "192.0.2.2"))


class HAProxy:
    """
    HAProxy in front of two daemons.

    :param root: an existing directory, which gets the configuration and the log.
    """

    def __init__(self, root: Path, daemons: list[Daemon]) -> None:
        self.client_port, self.manager_port = free_port(), free_port()
        self.log = root / "haproxy.log"
        self._configuration = root / "haproxy.cfg"
        sample = (CHECKOUT / "etc" / "haproxy.cfg").read_text()
        replaced = [
            ("log /dev/log local0", "log stdout format raw local0"),
            ("bind :6021\n", f"bind 127.0.0.1:{self.client_port}\n"),
            ("bind :6022\n", f"bind 127.0.0.1:{self.manager_port}\n"),
        ]
        for (name, address), daemon in zip(_SERVERS, daemons, strict=True):
            client, manager = daemon.client_port, daemon.manager_port
            replaced += [
                (
                    f"server {name} {address}:6021 check port 6022",
                    f"server {name} 127.0.0.1:{client} check port {manager}",
                ),
                (f"server {name} {address}:6022", f"server {name} 127.0.0.1:{manager}"),
            ]
        for old, new in replaced:
            if old not in sample:
                raise ValueError(f"the sample has no {old!r}")
            sample = sample.replace(old, new)
        self._configuration.write_text(sample)

    def start(self) -> subprocess.Popen[bytes]:
        """Start it, and return when it takes connections."""
        with self.log.open("ab") as log:
            process = subprocess.Popen(
                ["haproxy", "-db", "-f", str(self._configuration)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        try:
            connected(self.client_port, process)
        except OSError:
            raise RuntimeError(self.log.read_text()) from None
        return process

    def url(self, url: str) -> str:
        """The same URL of the client API, by way of the proxy."""
        parts = urlsplit(url)
        return parts._replace(netloc=f"127.0.0.1:{self.client_port}").geturl()

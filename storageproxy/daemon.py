# -*- test-case-name: tests.test_daemon -*-
"""
The daemon towards the system it runs on, once for all of its processes: ports, rights, the pid
file, what systemd and the log are told.
"""

from __future__ import annotations

import atexit
import grp
import os
import pwd
import socket
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from twisted.application.service import IService, MultiService
from twisted.internet.defer import Deferred
from twisted.logger import ILogObserver, Logger
from twisted.python.failure import Failure

import storageproxy
from storageproxy.config import Configuration
from storageproxy.listeners import Certificate, Listener, open_socket
from storageproxy.notify import notify


class IServing(IService):
    """What serves on the ports: this process, or several others."""

    def listen(listeners: list[Listener]) -> None:
        """
        Take the ports, before the start.

        :param listeners: of the clients and of the managers.
        """

    def ready() -> Deferred[None]:
        """
        :return: a Deferred that fires when requests are served, or with a failure that says why
            they will never be.
        """


class Daemon(MultiService):
    """
    Opens the ports, becomes an ordinary user, and has somebody serve on them.

    :param settings: the checked configuration.
    :param serving: an :class:`IServing`.
    :param reactor: where everything runs.
    :param log_observer: put into the application that the service becomes a part of.
    :param greeting: said when requests are served.
    :param environ: the environment, for systemd.
    :raises ConfigurationError: when a certificate cannot be used.
    """

    log = Logger()

    def __init__(
        self,
        settings: Configuration,
        serving: Any,
        reactor: Any,
        log_observer: Any = None,
        greeting: str = "",
        environ: Mapping[str, str] = os.environ,
    ) -> None:
        super().__init__()
        self._settings = settings
        self._serving = serving
        self._reactor = reactor
        self._log_observer = log_observer
        self._greeting = greeting
        self._environ = environ
        self._certificates = [
            Certificate.load(api) for api in (settings.api.client, settings.api.manager)
        ]
        self._sockets: list[socket.socket] = []
        serving.setServiceParent(self)

    def setServiceParent(self, parent: Any) -> None:
        """Join the application, whose log is ours too."""
        if self._log_observer is not None and hasattr(parent, "setComponent"):
            parent.setComponent(ILogObserver, self._log_observer)
        super().setServiceParent(parent)

    def privilegedStartService(self) -> None:
        """Open both ports, while the process may."""
        api = self._settings.api
        for name, (host, port) in (
            ("client", api.client.service_addr),
            ("manager", api.manager.service_addr),
        ):
            try:
                self._sockets.append(open_socket(host, port))
            except OSError as error:
                self._close()
                raise SystemExit(
                    f"api.{name}.service-addr: {host}:{port}: {error.strerror}"
                ) from None
        self._serving.listen(
            [Listener(*pair) for pair in zip(self._sockets, self._certificates, strict=True)]
        )
        self._write_pid()
        super().privilegedStartService()

    def startService(self) -> None:
        """Become an ordinary user, and begin."""
        drop_privileges(
            os.geteuid(), self._settings.storage_proxy.user, self._settings.storage_proxy.group
        )
        super().startService()
        self._serving.ready().addCallbacks(self._tell, self._give_up)

    async def _stop(self) -> None:
        notify(self._environ, "STOPPING=1")
        self._close()
        await MultiService.stopService(self)
        self._remove_pid()

    def stopService(self) -> Deferred[None]:
        """Take no more connections, and wait until those that there are have ended."""
        return Deferred.fromCoroutine(self._stop())

    def _tell(self, _: None) -> None:
        self.log.info("Storage Proxy {version} has started.", version=storageproxy.__version__)
        if self._settings.ignored:
            self.log.info(
                "These keys of the configuration mean nothing here: {keys}",
                keys=", ".join(self._settings.ignored),
            )
        if self._greeting:
            # For a person at a terminal, beside the log; twistd has taken sys.stderr for that.
            print(self._greeting, file=sys.__stderr__, flush=True)
        notify(self._environ, "READY=1", f"STATUS={len(self._settings.volume)} volumes")

    def _give_up(self, failure: Failure) -> None:
        self.log.critical("{reason}", reason=failure.getErrorMessage())
        # twistd has no other way to end with a status when its reactor has run.
        atexit.register(os._exit, 1)
        self._reactor.callWhenRunning(self._reactor.stop)

    def _close(self) -> None:
        sockets, self._sockets = self._sockets, []
        for one in sockets:
            one.close()

    def _write_pid(self) -> None:
        path = self._settings.storage_proxy.pid_file
        if path != os.devnull:
            Path(path).write_text(f"{os.getpid()}\n")

    def _remove_pid(self) -> None:
        path = self._settings.storage_proxy.pid_file
        if path != os.devnull:
            try:
                Path(path).unlink(missing_ok=True)
            except OSError as error:
                self.log.info("{path} stays: {error}", path=path, error=error.strerror)


def drop_privileges(euid: int, user: int, group: int) -> None:
    """
    Become an ordinary user, when the process was started as root.

    :param euid: who it is.
    :param user: who it shall be: a uid, -1 to stay, -2 for the owner of the program.
    :param group: likewise.
    """
    if euid != 0:
        return
    owner = os.stat(storageproxy.__file__)
    uid = {-1: 0, -2: owner.st_uid}.get(user, user)
    gid = {-1: os.getegid(), -2: owner.st_gid}.get(group, group)
    if uid == 0 and gid == os.getegid():
        return
    try:
        # The groups of the user, if he is in the table; containers often have none.
        name = pwd.getpwuid(uid).pw_name
        groups = [entry.gr_gid for entry in grp.getgrall() if name in entry.gr_mem]
    except KeyError:
        groups = []
    os.setgroups(sorted({gid, *groups}))
    os.setgid(gid)
    os.setuid(uid)

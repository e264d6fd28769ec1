# -*- test-case-name: tests.test_notify -*-
"""
Telling systemd how the daemon is.
"""

from __future__ import annotations

import os
import shutil
import socket
import tempfile
from uuid import uuid4

from twisted.trial.unittest import SynchronousTestCase

from storageproxy.notify import notify


class NotifyTests(SynchronousTestCase):
    """Messages to whoever has started the daemon."""

    def setUp(self) -> None:
        """Make a short directory, as paths of sockets are limited."""
        self.directory = tempfile.mkdtemp(prefix="notify-")
        self.addCleanup(shutil.rmtree, self.directory)

    def listen(self, address: str) -> socket.socket:
        """Listen as systemd does."""
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.addCleanup(listener.close)
        listener.bind(address)
        listener.settimeout(5)
        return listener

    def test_path(self) -> None:
        """A message goes to the socket that has the path."""
        path = os.path.join(self.directory, "socket")
        listener = self.listen(path)
        notify({"NOTIFY_SOCKET": path}, "READY=1")
        self.assertEqual(listener.recv(100), b"READY=1")

    def test_abstract(self) -> None:
        """A name with an at sign is one of Linux's abstract namespace."""
        name = f"storage-proxy-{uuid4().hex}"
        listener = self.listen(f"\0{name}")
        notify({"NOTIFY_SOCKET": f"@{name}"}, "STOPPING=1")
        self.assertEqual(listener.recv(100), b"STOPPING=1")

    def test_assignments(self) -> None:
        """Several assignments are one message, a line each, in UTF-8."""
        path = os.path.join(self.directory, "socket")
        listener = self.listen(path)
        notify({"NOTIFY_SOCKET": path}, "READY=1", "STATUS=Läuft")
        self.assertEqual(listener.recv(100), "READY=1\nSTATUS=Läuft".encode())

    def test_nobody_asked(self) -> None:
        """Without the variable, or with an empty one, nothing is done."""
        self.patch(socket, "socket", self.fail)
        notify({}, "READY=1")
        notify({"NOTIFY_SOCKET": ""}, "READY=1")

    def test_missing(self) -> None:
        """A supervisor that is gone is no reason to stop."""
        path = os.path.join(self.directory, "missing")
        notify({"NOTIFY_SOCKET": path}, "READY=1")
        notify({"NOTIFY_SOCKET": f"@storage-proxy-{uuid4().hex}"}, "READY=1")

    def test_dead(self) -> None:
        """Neither is one that has left its socket behind, nor a path that can be none."""
        path = os.path.join(self.directory, "socket")
        self.listen(path).close()
        notify({"NOTIFY_SOCKET": path}, "READY=1")
        notify({"NOTIFY_SOCKET": "/" + "x" * 300}, "READY=1")

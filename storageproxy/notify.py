"""
Tells systemd how the daemon is (sd_notify(3), ``Type=notify``).
"""

from __future__ import annotations

import socket
from collections.abc import Mapping


def notify(environ: Mapping[str, str], *assignments: str) -> None:
    """
    Send a message to whoever has started the daemon, if he wants one.

    :param environ: has ``NOTIFY_SOCKET`` then, a path or, with ``@``, an abstract name.
    :param assignments: such as ``READY=1``.
    """
    address = environ.get("NOTIFY_SOCKET")
    if not address:
        return
    if address.startswith("@"):
        address = "\0" + address[1:]
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sender:
        try:
            sender.sendto("\n".join(assignments).encode("utf-8"), address)
        except OSError:
            # A supervisor that is gone is no reason to stop serving.
            return

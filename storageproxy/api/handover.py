"""
Downloads that a proxy in front sends by itself, once it is told where the file is.

nginx does so for ``X-Accel-Redirect``. It finds the file by its path, after we have let go of it:
its ``disable_symlinks`` is what keeps it in the vfolder then (etc/nginx.conf).
"""

from __future__ import annotations

import os
import posixpath
from collections.abc import Mapping
from ipaddress import IPv4Network, IPv6Network, ip_address
from urllib.parse import quote

from attrs import field, frozen
from twisted.internet.interfaces import IAddress

from storageproxy.beneath import File
from storageproxy.interfaces import IVolume

Network = IPv4Network | IPv6Network


@frozen
class Handover:
    """
    Who is told, and what.

    :param prefixes: for the names of volumes, the path under which the proxy has their files.
    :param proxies: the addresses that requests have to come from.
    """

    prefixes: Mapping[str, str] = field(factory=dict)
    proxies: tuple[Network, ...] = ()

    def prefix(self, volume: IVolume, client: IAddress | None) -> str | None:
        """
        The prefix for files of a volume, or None for a client that gets the file itself.

        :param client: who has sent the request.
        """
        prefix = self.prefixes.get(volume.name)
        host = getattr(client, "host", None)
        if not prefix or host is None:
            return None
        address = ip_address(host)
        mapped = getattr(address, "ipv4_mapped", None) or address
        return prefix if any(mapped in network for network in self.proxies) else None


def location(prefix: str, volume: IVolume, file: File) -> str | None:
    """
    The path under which a proxy has an open file. Blocks.

    It is the one that the kernel knows, without any links in it.

    :return: None when the file has none in the volume, as it was deleted meanwhile.
    """
    path = file.path()
    try:
        if not os.path.samestat(os.stat(path, follow_symlinks=False), file.status()):
            return None
    except OSError:
        return None
    inside = posixpath.relpath(path, volume.path)
    if inside.startswith("../"):
        return None
    return posixpath.join(prefix, quote(os.fsencode(inside)))

# -*- test-case-name: tests.test_purestorage_backend -*-
"""
``backend = "purestorage"``: its options, and how a volume is put together.
"""

from __future__ import annotations

import re
from typing import Any

from attrs import define, field
from zope.interface import implementer

from backends import vfs
from backends.purestorage import connections
from backends.purestorage.array import Array
from backends.purestorage.client import RESTClient
from backends.purestorage.dialect import parse
from backends.purestorage.volume import PureStorageVolume
from storageproxy.config import VolumeSettings
from storageproxy.interfaces import IBackend
from storageproxy.schema import Flag, Text, structure

_ENDPOINT = re.compile(r"https://(\[[0-9a-fA-F:.]+\]|[A-Za-z0-9._-]+)(:[0-9]{1,5})?/?")
_WORD = re.compile(r"[!-~]+")


@define(frozen=True)
class Options(vfs.Options):
    """
    ``[volume.NAME.options]``: those of the plain backend, and the array, by the original's names.

    :param purity_endpoint: the URL of the array's management address.
    :param purity_api_token: of a user who may read, and set limits when managers are to.
    :param purity_fs_name: the file system that is mounted.
    :param purity_api_version: of the REST API, from 1.8 on; None for the best that the array has.
    :param purity_ssl_verify: whether the array's certificate is looked at.
    :param purity_ca_file: a PEM file with its authority, when the system does not know that. (Not
        of the original.)
    """

    purity_endpoint: Text = field(kw_only=True)
    purity_api_token: Text = field(kw_only=True, repr=False)
    purity_fs_name: Text = field(kw_only=True)
    purity_api_version: str | None = None
    purity_ssl_verify: Flag = Flag(True)
    purity_ca_file: str | None = None

    def problems(self) -> list[str]:
        """See :meth:`backends.vfs.Options.problems`."""
        found = super().problems()
        if not _ENDPOINT.fullmatch(self.purity_endpoint):
            found.append("options.purity_endpoint: a URL such as https://flashblade.example.com")
        if not _WORD.fullmatch(self.purity_api_token):
            found.append("options.purity_api_token: the token alone, as the array has shown it")
        if self.purity_api_version is not None and parse(self.purity_api_version) is None:
            found.append(
                'options.purity_api_version: a text such as "1.8" or "2.9", from 1.8 on; leave it'
                " out for the best that the array has"
            )
        if "," in self.purity_fs_name:
            found.append("options.purity_fs_name: one name; the array takes commas for several")
        if self.purity_ca_file is not None:
            found += _check_authority(self.purity_ca_file)
        return found


def _check_authority(path: str) -> list[str]:
    try:
        connections.authority(path)
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or str(error)
        return [f"options.purity_ca_file: a PEM file with certificates, not {path}: {why}"]
    return []


@implementer(IBackend)
class PureStorageBackend:
    """``backend = "purestorage"``."""

    name = "purestorage"

    def check(self, name: str, settings: VolumeSettings) -> list[str]:
        """See :meth:`storageproxy.interfaces.IBackend.check`."""
        return vfs.check_options(settings, Options)

    def volume(self, name: str, settings: VolumeSettings, reactor: Any) -> PureStorageVolume:
        """See :meth:`storageproxy.interfaces.IBackend.volume`."""
        options = structure(settings.options, Options)
        trusted = connections.policy(options.purity_ssl_verify, options.purity_ca_file)
        http, pool = connections.connections(reactor, trusted, options.deadline)
        rest = RESTClient(
            reactor,
            http,
            name,
            options.purity_endpoint.rstrip("/"),
            options.purity_api_token,
            options.purity_api_version,
            options.deadline,
            pool.closeCachedConnections,
        )
        return PureStorageVolume(
            name,
            settings.path,
            settings.fsprefix,
            options.make_threads(name, reactor),
            reactor,
            Array(rest, name, options.purity_fs_name),
            options.durability,
        )

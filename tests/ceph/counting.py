"""
A cluster that counts what directories hold within a second rather than six, and whether it has.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from twisted.internet import reactor
from twisted.internet.task import deferLater

from backends.cephfs.attributes import BYTES, FILES
from storageproxy import trees
from storageproxy.beneath import Directory
from storageproxy.testing import GIVE_UP
from tests.ceph import case
from tests.engines.ceph import Cluster

PAUSE = 0.05


@functools.cache
def cluster() -> Cluster:
    """The cluster of this process; to be asked for before anything is mounted."""
    found = case.cluster(1)
    for who, name, value in (
        # How often servers tell each other, and how long clients keep to themselves what they did.
        ("mds", "mds_tick_interval", "0.1"),
        ("mds", "mds_dirstat_min_interval", "0.1"),
        ("client", "client_caps_release_delay", "0"),
    ):
        found.command("config", "set", who, name, value)
    return found


def attribute(path: str | Path, name: str) -> int:
    """A number that CephFS has for a directory."""
    return int(os.getxattr(path, name))


def is_counted(path: str) -> bool:
    """Whether the cluster has counted a directory and each of those in it."""
    with Directory.open_root(path) as top:
        found = trees.usage(top)
        counted = trees.Usage(attribute(path, FILES), attribute(path, BYTES))
        names = [entry.name for entry in os.scandir(top.descriptor) if entry.is_dir()]
    return found == counted and all(is_counted(f"{path}/{name}") for name in names)


async def counted(path: str) -> None:
    """Return when the cluster has counted a directory with all that is below it."""
    await until(lambda: is_counted(path), f"{path} is not counted")


async def until(condition: Callable[[], bool], complaint: str) -> None:
    """Return when something holds that the cluster brings about."""
    clock: Any = reactor
    end = clock.seconds() + GIVE_UP
    while not condition():
        if clock.seconds() > end:
            raise AssertionError(complaint)
        await deferLater(clock, PAUSE)

# -*- test-case-name: tests.test_xfs_tap -*-
"""
The agent's configuration: a TOML file to a frozen attrs class. Every complaint names its key.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from attrs import evolve, field, frozen

from backends.xfs.interfaces import NotManaged
from backends.xfs.kernel import LAST_PROJECT
from backends.xfs.projects import IDS
from backends.xfs.registry import check_path
from storageproxy.config import (
    ConfigurationError,
    GroupID,
    LoggingSettings,
    UserID,
    check_logging,
    read,
    register_tables,
)
from storageproxy.schema import Complaint, Duration, Flag, Text, structure

#: Where the agent listens when nobody says where.
SOCKET = "/run/storage-proxy-xfs-agent/socket"

#: Seconds between two rounds of reconciling when nobody says how many.
RECONCILE_INTERVAL = Duration(86400.0)


@frozen
class AgentSettings:
    """
    The file.

    :param volumes: the directories of the volumes, absolute; without symbolic links once they are
        loaded.
    :param users: who is served.
    :param socket: where it listens.
    :param socket_mode: its permissions.
    :param socket_group: its group.
    :param projects: the file of projects.
    :param projid: the file of their names.
    :param ids: the first and the last id that may be given.
    :param reconcile_interval: seconds between two rounds of reconciling, 0 for none.
    :param read_all: whether to keep CAP_DAC_READ_SEARCH as well, if it is there.
    :param threads: calls at most that are made on a volume at one time.
    :param deadline: seconds that one of them, or a command, may take.
    """

    volumes: list[Text]
    users: list[UserID]
    socket: Text = Text(SOCKET)
    socket_mode: int = 0o660
    socket_group: GroupID = GroupID(-1)
    projects: Text = Text("/etc/projects")
    projid: Text = Text("/etc/projid")
    ids: list[int] = field(factory=lambda: [IDS.start, IDS.stop - 1])
    reconcile_interval: Duration = RECONCILE_INTERVAL
    read_all: Flag = Flag(False)
    threads: int = 8
    deadline: Duration = Duration(15.0)
    logging: LoggingSettings = field(factory=LoggingSettings)


register_tables(AgentSettings)

#: What ``ids`` has to be, for who has given something else.
RANGE = f"the first and the last one, from 1 to {LAST_PROJECT}"


def is_range(ids: Sequence[int]) -> bool:
    """Whether these are the first and the last of some ids."""
    return len(ids) == 2 and 1 <= ids[0] <= ids[1] <= LAST_PROJECT


def to_range(ids: Sequence[int]) -> range:
    """All ids from the first to the last one."""
    first, last = ids
    return range(first, last + 1)


def load(path: Path) -> AgentSettings:
    """
    Read and check a configuration file.

    :raises ConfigurationError: with a line for each problem, naming file and key.
    """
    return read(path, check)


def check(table: Mapping[str, Any]) -> AgentSettings:
    """
    Make sense of a configuration.

    :param table: what the TOML file says.
    :raises ConfigurationError: with a line for each problem, naming its key.
    """
    try:
        found = structure(table, AgentSettings)
    except Complaint as error:
        raise ConfigurationError(
            f"{key.replace('_', '-') or 'the file'}: {why}" for key, why in error.fields.items()
        ) from None
    if problems := list(_problems(found)):
        raise ConfigurationError(problems)
    volumes = [Text(os.path.realpath(path)) for path in found.volumes]
    return evolve(found, volumes=volumes)


def _problems(found: AgentSettings) -> Iterable[str]:
    if not found.volumes:
        yield "volumes: at least one directory"
    for path in found.volumes:
        try:
            check_path(path)
        except NotManaged:
            yield f"volumes: absolute paths that the file of projects can hold, not {path!r}"
    if not found.users:
        yield "users: at least one name or number, such as that of the Storage Proxy's user"
    if any(user < 0 for user in found.users):
        yield "users: names or numbers"
    if found.socket_group < -1:
        yield "socket-group: a name or a number, or -1 for the current one"
    if not 0 <= found.socket_mode <= 0o777:
        yield "socket-mode: permissions such as 0o660"
    for key, path in (
        ("socket", found.socket),
        ("projects", found.projects),
        ("projid", found.projid),
    ):
        if not os.path.isabs(path) or not os.path.isdir(os.path.dirname(path)):
            yield f"{key}: an absolute path in an existing directory, not {path}"
    if not is_range(found.ids):
        yield f"ids: {RANGE}"
    if not 2 <= found.threads <= 1024:
        yield "threads: a number from 2 to 1024"
    if found.deadline <= 0:
        yield "deadline: more than 0 seconds"
    yield from check_logging(found.logging)

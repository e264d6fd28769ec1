"""
``storage-proxy.toml``, as the original reads it, to frozen attrs classes.

Every key of 20.09 and 22.03 means what it meant there; keys of later releases, and those that only
the original needs, are taken and named in the log. Every complaint names its key.
"""

from __future__ import annotations

import grp
import os
import pwd
import secrets
import threading
import time
import tomllib
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from ipaddress import IPv4Network, IPv6Network, ip_network
from pathlib import Path
from typing import Any, NewType, TypeVar
from urllib.parse import quote

from attrs import evolve, field, frozen
from twisted.plugin import getPlugins

import twisted.plugins as plugins
from storageproxy.interfaces import IBackend
from storageproxy.schema import (
    ByteSize,
    Complaint,
    Duration,
    Flag,
    RelativePath,
    Text,
    converter,
    register,
    structure,
    text,
    whole_number,
)

T = TypeVar("T")

FILE_NAME = "storage-proxy.toml"

#: Seconds that a mount may take to say whether a volume's path is a directory.
MOUNT_PATIENCE = 5.0

#: Tables and keys that mean something to the original only.
_IGNORED = {
    "": {"etcd", "pyroscope", "otel", "service-discovery", "redis", "artifact-storages"}
    | {"artifact-registries", "storages", "registries", "reservoir-client"},
    "storage-proxy": {"event-loop", "ipc-base-path", "aiomonitor-termui-port", "volume-stats"}
    | {"aiomonitor-webui-port", "watcher-insock-path-prefix", "watcher-outsock-path-prefix"}
    | {"use-watcher", "allow-auto-quota-scope-creation"}
    | {"use-experimental-redis-event-dispatcher"},
    "api.manager": {"internal-addr", "announce-addr", "announce-internal-addr"},
    "logging": {"logstash"},
}

#: ``host:port``, ``{host, port}`` or ``[host, port]``.
Address = NewType("Address", tuple[str, int])
#: A user: a number, a name, "" for the owner of the program, -1 for the current one.
UserID = NewType("UserID", int)
#: A group, in the same way.
GroupID = NewType("GroupID", int)
#: Addresses, or networks of them.
Networks = NewType("Networks", tuple[IPv4Network | IPv6Network, ...])


class ConfigurationError(Exception):
    """
    The configuration cannot be used.

    :param problems: one line each.
    """

    def __init__(self, problems: Iterable[str]) -> None:
        self.problems = list(problems)
        super().__init__("\n".join(self.problems))


@frozen
class ProxySettings:
    """
    ``[storage-proxy]``.

    :param session_expire: seconds that a token, and with it an upload session, lives.
    :param scandir_limit: entries at most in a listing, 0 for all.
    :param max_upload_size: bytes at most of one upload.
    """

    node_id: Text
    secret: Text = field(repr=False)
    session_expire: Duration
    num_proc: int = field(factory=lambda: os.cpu_count() or 1)
    pid_file: str = "/dev/null"
    scandir_limit: int = 1000
    max_upload_size: ByteSize = ByteSize(100 * 1024**3)
    user: UserID = UserID(-2)
    group: GroupID = GroupID(-2)


@frozen
class ListenerSettings:
    """
    What ``[api.client]`` and ``[api.manager]`` have in common.
    """

    service_addr: Address
    ssl_enabled: Flag = Flag(False)
    ssl_cert: str | None = None
    ssl_privkey: str | None = None


@frozen
class ClientSettings(ListenerSettings):
    """
    ``[api.client]``.

    :param trusted_proxies: the addresses of proxies that may be told where a file is.
    """

    trusted_proxies: Networks = Networks(())


@frozen
class ManagerSettings(ListenerSettings):
    """
    ``[api.manager]``.

    :param secret: what managers send in ``X-BackendAI-Storage-Auth-Token``.
    :param delete_status: how a finished deletion is reported: 204 to managers up to 24.09, 410 to
        those of 25.12 and later when they get no events, 202 to those between.
    """

    secret: Text = field(repr=False, kw_only=True)
    delete_status: int = field(default=204, kw_only=True)


@frozen
class ApiSettings:
    """``[api]``."""

    client: ClientSettings
    manager: ManagerSettings


@frozen
class VolumeSettings:
    """
    ``[volume.NAME]``.

    :param path: an existing directory, absolute and without symbolic links once it is loaded.
    :param fsprefix: reported by ``/volumes``, and used nowhere else.
    :param x_accel_redirect: the path under which a proxy in front has the volume's files.
    :param options: what the backend makes of it; there may be secrets in it.
    """

    backend: Text
    path: Text
    fsprefix: RelativePath = RelativePath(".")
    x_accel_redirect: str | None = None
    options: Mapping[str, Any] = field(factory=dict, repr=False)


@frozen
class FileLogSettings:
    """
    ``[logging.file]``.

    :param rotation_size: bytes after which a new file is begun.
    :param backup_count: old files that are kept.
    """

    path: Text
    filename: Text
    backup_count: int = 5
    rotation_size: ByteSize = ByteSize(10 * 1024**2)


@frozen
class LoggingSettings:
    """``[logging]``."""

    level: str = "INFO"
    drivers: list[str] = field(factory=lambda: ["console"])
    file: FileLogSettings | None = None


@frozen
class DebugSettings:
    """``[debug]``."""

    enabled: Flag = Flag(False)


@frozen
class Configuration:
    """
    All of it.

    :param ignored: keys that were found and mean nothing here.
    """

    storage_proxy: ProxySettings
    api: ApiSettings
    volume: dict[str, VolumeSettings]
    logging: LoggingSettings = field(factory=LoggingSettings)
    debug: DebugSettings = field(factory=DebugSettings)
    ignored: tuple[str, ...] = ()


def find_file(environ: Mapping[str, str]) -> Path:
    """
    Where the configuration is, when the command line does not say: ``BACKEND_CONFIG_FILE``, else
    the first of ``./``, ``~/.config/backend.ai/`` and ``/etc/backend.ai/``.

    :raises ConfigurationError: when there is none.
    """
    if environ.get("BACKEND_CONFIG_FILE"):
        return Path(environ["BACKEND_CONFIG_FILE"])
    places = [
        Path(FILE_NAME),
        Path.home() / ".config" / "backend.ai" / FILE_NAME,
        Path("/etc/backend.ai") / FILE_NAME,
    ]
    for place in places:
        if place.is_file():
            return place
    raise ConfigurationError(
        [
            f"{FILE_NAME}: not found; give --config FILE or --standalone DIR,"
            f" or put it at one of {', '.join(map(str, places))}"
        ]
    )


def load(path: Path) -> Configuration:
    """
    Read and check a configuration file.

    :raises ConfigurationError: with a line for each problem, naming file and key.
    """
    return read(path, check)


def read(path: Path, check: Callable[[Mapping[str, Any]], T]) -> T:
    """
    Read a TOML file.

    :param check: makes sense of it, or raises a ConfigurationError.
    :raises ConfigurationError: with a line for each problem, naming the file.
    """
    try:
        with path.open("rb") as file:
            table = tomllib.load(file)
    except OSError as error:
        raise ConfigurationError([f"{path}: {error.strerror}"]) from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigurationError([f"{path}: not TOML: {error}"]) from None
    try:
        return check(table)
    except ConfigurationError as error:
        raise ConfigurationError(f"{path}: {problem}" for problem in error.problems) from None


def standalone(directory: Path) -> Configuration:
    """
    The embedded default: one vfs volume ``local`` below a directory, both ports on loopback.
    Secrets are made at the first start, and kept in the directory for its owner alone.
    """
    try:
        directory.mkdir(parents=True, exist_ok=True)
        volume = directory / "local"
        volume.mkdir(exist_ok=True)
        manager_secret = _kept_secret(directory / "manager-secret")
        token_secret = _kept_secret(directory / "token-secret")
    except OSError as error:
        raise ConfigurationError(
            [f"--standalone {directory}: {error.strerror}: {error.filename}"]
        ) from None
    return check(
        {
            "storage-proxy": {
                "node-id": "standalone",
                "num-proc": 1,
                "secret": token_secret,
                "session-expire": "1d",
                "user": -1,
                "group": -1,
            },
            "api": {
                "client": {"service-addr": ["127.0.0.1", 6021]},
                "manager": {"service-addr": ["127.0.0.1", 6022], "secret": manager_secret},
            },
            "volume": {"local": {"backend": "vfs", "path": str(volume.absolute())}},
        }
    )


def _kept_secret(path: Path) -> str:
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        return path.read_text().strip()
    with open(descriptor, "w") as file:
        file.write(secrets.token_urlsafe(32) + "\n")
    return path.read_text().strip()


def check(table: Mapping[str, Any]) -> Configuration:
    """
    Make sense of a configuration.

    :param table: what the TOML file says.
    :raises ConfigurationError: with a line for each problem, naming its key.
    """
    try:
        # What was found to mean nothing is for us to say, not for the file.
        keys = {key: value for key, value in table.items() if key != "ignored"}
        found = structure(keys, Configuration)
    except Complaint as error:
        raise ConfigurationError(
            f"{_toml_key(key)}: {why}" for key, why in error.fields.items()
        ) from None
    problems = [*_check_values(found), *_check_listeners(found), *_check_backends(found)]
    volumes, missing = _resolve_paths(found.volume)
    problems += missing
    if problems:
        raise ConfigurationError(problems)
    return evolve(found, volume=volumes, ignored=tuple(sorted(_ignored(table))))


def _toml_key(name: str) -> str:
    """The name of a field as the file has it; those of volumes are their owner's."""
    section, dot, rest = name.partition(".")
    if section == "volume":
        volume, dot_2, key = rest.partition(".")
        return f"{section}{dot}{volume}{dot_2}{key.replace('_', '-')}"
    return name.replace("_", "-") or "the file"


def backends() -> dict[str, Any]:
    """The storage systems that are installed: name to :class:`IBackend`."""
    return {backend.name: backend for backend in getPlugins(IBackend, plugins)}


def _check_values(found: Configuration) -> Iterable[str]:
    proxy = found.storage_proxy
    if proxy.num_proc < 1:
        yield "storage-proxy.num-proc: a whole number of 1 or more"
    if not os.path.isdir(os.path.dirname(os.path.abspath(proxy.pid_file))):
        yield f"storage-proxy.pid-file: a file in an existing directory, not {proxy.pid_file}"
    if proxy.scandir_limit < 0:
        yield "storage-proxy.scandir-limit: a whole number of 0 (no limit) or more"
    if found.api.manager.delete_status not in (202, 204, 410):
        yield "api.manager.delete-status: one of 202, 204, 410"
    yield from check_logging(found.logging)
    for name, volume in found.volume.items():
        prefix = volume.x_accel_redirect
        if prefix is not None and not (
            prefix[:1] == prefix[-1:] == "/" and quote(prefix) == prefix
        ):
            yield (
                f"volume.{name}.x-accel-redirect: a path that begins and ends with a slash,"
                " as it stands in a URL"
            )
        if prefix is not None and not found.api.client.trusted_proxies:
            yield f"volume.{name}.x-accel-redirect: needs api.client.trusted-proxies"
    if not found.volume:
        yield "volume: at least one [volume.NAME] table"


_LEVELS = ("NOTSET", "DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL")


def check_logging(logging: LoggingSettings) -> Iterable[str]:
    """
    Look at the table ``[logging]``.

    :return: a line for each problem.
    """
    if logging.level.upper() not in _LEVELS:
        yield f"logging.level: one of {', '.join(_LEVELS)}"
    for driver in logging.drivers:
        if driver not in ("console", "file", "logstash"):
            yield "logging.drivers: a list of console, file, logstash"
    if "file" in logging.drivers and logging.file is None:
        yield "logging.file: is required, as logging.drivers has file"
    file = logging.file
    if file is not None and not 1 <= file.backup_count <= 100:
        yield "logging.file.backup-count: a whole number from 1 to 100"


def _check_listeners(found: Configuration) -> Iterable[str]:
    for name, listener in (("client", found.api.client), ("manager", found.api.manager)):
        for key, path in (("ssl-cert", listener.ssl_cert), ("ssl-privkey", listener.ssl_privkey)):
            if path is not None and not os.path.isfile(path):
                yield f"api.{name}.{key}: an existing file, which {path} is not"
            if listener.ssl_enabled and path is None:
                yield f"api.{name}.{key}: is required, as ssl-enabled is true"


def _check_backends(found: Configuration) -> Iterable[str]:
    known = backends()
    for name, settings in found.volume.items():
        if settings.backend not in known:
            allowed = ", ".join(sorted(known))
            yield f"volume.{name}.backend: one of {allowed}, not {settings.backend}"
            continue
        for problem in known[settings.backend].check(name, settings):
            yield f"volume.{name}.{problem}"


def _resolve_paths(
    volumes: Mapping[str, VolumeSettings],
) -> tuple[dict[str, VolumeSettings], list[str]]:
    """
    Look at the volumes' directories, each in a thread of its own: a mount that hangs has to be
    found out by its requests later on, not by everybody now.
    """
    answers: dict[str, str] = {}

    def look(name: str, path: str) -> None:
        if os.path.isdir(path):
            answers[name] = os.path.realpath(path)
        else:
            answers[name] = ""

    threads = [
        threading.Thread(target=look, args=(name, settings.path), daemon=True)
        for name, settings in volumes.items()
    ]
    for thread in threads:
        thread.start()
    end = time.monotonic() + MOUNT_PATIENCE
    for thread in threads:
        thread.join(max(0.0, end - time.monotonic()))
    resolved, problems = {}, []
    for name, settings in volumes.items():
        answer = answers.get(name, os.path.abspath(settings.path))
        if not answer:
            problems.append(
                f"volume.{name}.path: an existing directory, which {settings.path} is not"
            )
        resolved[name] = evolve(settings, path=Text(answer))
    return resolved, problems


def _ignored(table: Mapping[str, Any]) -> Iterable[str]:
    for section, keys in _IGNORED.items():
        here: Any = table
        for step in filter(None, section.split(".")):
            here = here.get(step) or here.get(step.replace("-", "_")) or {}
        for key in here if isinstance(here, Mapping) else ():
            if key.replace("_", "-") in keys:
                yield f"{section}.{key}" if section else key


_ADDRESS = 'expected "host:port", { host = …, port = … } or ["host", port]'


def _address(value: object) -> tuple[str, int]:
    host: object
    port: object
    match value:
        case str():
            host, colon, port = value.rpartition(":")
            if not colon:
                raise ValueError(_ADDRESS)
        case {"host": host, "port": port}:
            pass
        case [host, port]:
            pass
        case _:
            raise ValueError(_ADDRESS)
    number = whole_number(port)
    if not 0 <= number <= 65535:
        raise ValueError("a port is a number from 0 to 65535")
    return text(host).strip("[]"), number


def _networks(value: object) -> tuple[IPv4Network | IPv6Network, ...]:
    if not isinstance(value, list):
        raise ValueError('expected a list of addresses and networks, such as ["10.0.0.0/8"]')
    return tuple(ip_network(text(item)) for item in value)


def _account(value: object, kind: str) -> int:
    if value == "":
        return -2
    if isinstance(value, str) and value.removeprefix("-").isdecimal():
        value = int(value)
    if isinstance(value, int) and not isinstance(value, bool):
        if value < -1:
            raise ValueError(f"expected the name or number of a {kind}, or -1 for the current one")
        return value
    try:
        name = text(value)
        return pwd.getpwnam(name).pw_uid if kind == "user" else grp.getgrnam(name).gr_gid
    except KeyError:
        raise ValueError(f"no such {kind}: {value}") from None


def register_tables(*classes: type) -> None:
    """
    Have tables made into attrs classes whose keys have dashes, or underscores: later releases of
    the original take both.
    """
    for cls in classes:
        make: Callable[[Any, type], object] = converter.gen_structure_attrs_fromdict(cls)
        converter.register_structure_hook(cls, partial(_kebab, make))


def _kebab(make: Callable[[Any, type], object], value: object, cls: type) -> object:
    if not isinstance(value, Mapping):
        raise ValueError("expected a table")
    return make({key.replace("-", "_"): item for key, item in value.items()}, cls)


register(Address, _address)
register(Networks, _networks)
register(UserID, lambda value: _account(value, "user"))
register(GroupID, lambda value: _account(value, "group"))
register_tables(
    DebugSettings,
    FileLogSettings,
    LoggingSettings,
    VolumeSettings,
    ListenerSettings,
    ClientSettings,
    ManagerSettings,
    ApiSettings,
    ProxySettings,
    Configuration,
)

"""
What a FlashBlade has and does, whichever version of its API it is asked by.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any
from uuid import UUID, uuid4, uuid5

from attrs import Factory, define, field

API_TOKEN = "T-11111111-2222-3333-4444-000000000000"
PROTOCOLS = ("HTTP", "NFS", "S3", "SMB")
#: Milliseconds that a destroyed file system can be recovered.
ERADICATION_DELAY = 24 * 3600 * 1000

_IDS = UUID("66992c13-6d81-433f-bb31-5fc33e76fa5f")


class Refused(Exception):
    """
    The array does not do what it is asked for.

    :ivar status: of the answer.
    :ivar message: what is wrong.
    :ivar context: the name of what it is wrong with.
    """

    def __init__(self, status: int, message: str, context: str | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.context = context


@define
class Performance:
    """
    What goes on by one protocol.

    :ivar reads_per_sec: operations; so are writes and others.
    :ivar read_bytes_per_sec: bytes; so are those written.
    :ivar usec_per_read_op: microseconds; so are those of writes and others.
    """

    reads_per_sec: float = 0.0
    writes_per_sec: float = 0.0
    others_per_sec: float = 0.0
    read_bytes_per_sec: float = 0.0
    write_bytes_per_sec: float = 0.0
    usec_per_read_op: float = 0.0
    usec_per_write_op: float = 0.0
    usec_per_other_op: float = 0.0

    def __add__(self, other: Performance) -> Performance:
        """Both together: rates are added, times are means of all operations."""

        def mean(rate: str, time: str) -> float:
            mine, theirs = getattr(self, rate), getattr(other, rate)
            both = mine + theirs
            spent = mine * getattr(self, time) + theirs * getattr(other, time)
            return spent / both if both else 0.0

        return Performance(
            self.reads_per_sec + other.reads_per_sec,
            self.writes_per_sec + other.writes_per_sec,
            self.others_per_sec + other.others_per_sec,
            self.read_bytes_per_sec + other.read_bytes_per_sec,
            self.write_bytes_per_sec + other.write_bytes_per_sec,
            mean("reads_per_sec", "usec_per_read_op"),
            mean("writes_per_sec", "usec_per_write_op"),
            mean("others_per_sec", "usec_per_other_op"),
        )

    def show(self) -> dict[str, float]:
        """The figures, with those that follow from others."""

        def each(amount: float, rate: float) -> float:
            return amount / rate if rate else 0.0

        moved = self.read_bytes_per_sec + self.write_bytes_per_sec
        return {
            "reads_per_sec": self.reads_per_sec,
            "writes_per_sec": self.writes_per_sec,
            "others_per_sec": self.others_per_sec,
            "read_bytes_per_sec": self.read_bytes_per_sec,
            "write_bytes_per_sec": self.write_bytes_per_sec,
            "usec_per_read_op": self.usec_per_read_op,
            "usec_per_write_op": self.usec_per_write_op,
            "usec_per_other_op": self.usec_per_other_op,
            "bytes_per_op": each(moved, self.reads_per_sec + self.writes_per_sec),
            "bytes_per_read": each(self.read_bytes_per_sec, self.reads_per_sec),
            "bytes_per_write": each(self.write_bytes_per_sec, self.writes_per_sec),
            "input_per_sec": self.write_bytes_per_sec,
            "output_per_sec": self.read_bytes_per_sec,
        }


@define
class FileSystem:
    """
    A file system of the array.

    :ivar provisioned: its size in bytes; none when it is unlimited.
    :ivar virtual: bytes that are written, as users see them.
    :ivar data_reduction: what compression makes of them.
    :ivar created: milliseconds.
    :ivar eradicated_at: milliseconds; none when it is not destroyed.
    :ivar performance: by protocol.
    :ivar settings: what clients may set that changes nothing here.
    """

    name: str
    provisioned: int | None = None
    virtual: int = 0
    hard_limit_enabled: bool = False
    data_reduction: float = 2.0
    snapshots: int = 0
    default_user_quota: int = 0
    default_group_quota: int = 0
    created: int = 1594304979000
    eradicated_at: float | None = None
    performance: dict[str, Performance] = Factory(dict)
    settings: dict[str, Any] = Factory(
        lambda: {
            "fast_remove_directory_enabled": False,
            "snapshot_directory_enabled": True,
            "writable": True,
            "requested_promotion_state": "promoted",
            "group_ownership": "creator",
            "nfs": {
                "enabled": True,
                "v3_enabled": True,
                "v4_1_enabled": False,
                "rules": "*(rw,no_root_squash)",
                "export_policy": None,
            },
            "smb": {
                "enabled": False,
                "acl_mode": None,
                "client_policy": None,
                "share_policy": None,
                "continuous_availability_enabled": True,
            },
            "http": {"enabled": False},
            "multi_protocol": {"access_control_style": "shared", "safeguard_acls": True},
            "eradication_config": {
                "eradication_mode": "permission-based",
                "manual_eradication": "enabled",
            },
            "qos_policy": None,
            "node_group": None,
            "workload": None,
            "source": None,
            "storage_class": None,
        }
    )
    id: str = field(init=False)

    def __attrs_post_init__(self) -> None:
        self.id = str(uuid5(_IDS, self.name))

    @property
    def destroyed(self) -> bool:
        """Whether it waits for its end."""
        return self.eradicated_at is not None

    def space(self) -> dict[str, Any]:
        """Bytes, and ratios of them."""
        unique = int(self.virtual / self.data_reduction)
        limit = self.provisioned if self.hard_limit_enabled else None
        left = None if limit is None else max(limit - self.virtual, 0)
        return {
            "virtual": self.virtual,
            "unique": unique,
            "snapshots": self.snapshots,
            "data_reduction": self.data_reduction,
            "total_physical": unique + self.snapshots,
            "total_used": unique + self.snapshots,
            "total_provisioned": limit,
            "available_provisioned": left,
            "available_ratio": left / limit if limit and left is not None else None,
            "destroyed": 0,
            "destroyed_virtual": 0,
            "shared": 0,
        }

    def show(self, now: float) -> dict[str, Any]:
        """
        All that any version of the API tells of it.

        :param now: milliseconds.
        """
        return {
            **self.settings,
            "name": self.name,
            "id": self.id,
            "created": self.created,
            "provisioned": self.provisioned,
            "hard_limit_enabled": self.hard_limit_enabled,
            "default_user_quota": self.default_user_quota,
            "default_group_quota": self.default_group_quota,
            "destroyed": self.destroyed,
            "time_remaining": None
            if self.eradicated_at is None
            else max(int(self.eradicated_at - now), 0),
            "promotion_status": "promoted",
            "context": None,
            "realms": [],
            "space": self.space(),
        }


@define
class Quota:
    """
    What one user or group may write to a file system.

    :ivar owner: uid or gid.
    :ivar owner_name: of that user or group.
    :ivar limit: bytes.
    :ivar usage: bytes.
    """

    file_system: FileSystem
    owner: int
    limit: int
    owner_name: str | None = None
    usage: int = 0

    @property
    def name(self) -> str:
        """How the array calls it."""
        return f"{self.file_system.name}/{self.owner}"


@define
class Array:
    """
    An array, with what is on it. Tests change it as they like.

    :ivar clock: seconds since the epoch.
    :ivar versions: of the API, the oldest first.
    :ivar idle_timeout: milliseconds after which a session that is not used ends; 0 for never.
    :ivar max_page: items in one answer at most.
    :ivar expired_status: of answers to those whose session has ended.
    :ivar logins: that were let in.
    :ivar sessions: when each was used last; seconds.
    """

    clock: Callable[[], float]
    versions: list[str] = Factory(
        lambda: (
            [*(f"1.{minor}" for minor in range(9)), "1.8.1", "1.9", "1.10", "1.11", "1.12"]
            + [f"2.{minor}" for minor in range(30)]
        )
    )
    api_token: str = API_TOKEN
    name: str = "fbsim01"
    version: str = "4.1.2"
    revision: str = "4007aea5"
    capacity: int = 89314175302419
    idle_timeout: int = 1800000
    max_page: int = 1000
    expired_status: int = 403
    logins: int = 0
    sessions: dict[str, float] = Factory(dict)
    file_systems: dict[str, FileSystem] = Factory(dict)
    user_quotas: dict[str, Quota] = Factory(dict)
    group_quotas: dict[str, Quota] = Factory(dict)
    blades: list[str] = Factory(lambda: ["healthy"] * 7)

    @property
    def id(self) -> str:
        """Which array this is."""
        return str(uuid5(_IDS, f"array {self.name}"))

    def now(self) -> int:
        """Milliseconds since the epoch."""
        return int(self.clock() * 1000)

    # ---- sessions

    def log_in(self, api_token: str | None) -> str:
        """Begin a session, and return its token."""
        if api_token != self.api_token:
            raise Refused(401, "Invalid API token.")
        self.logins += 1
        token = str(uuid4())
        self.sessions[token] = self.clock()
        return token

    def use(self, token: str | None) -> bool:
        """Whether a session goes on; it does from now, then."""
        used = self.sessions.get(token or "")
        if used is None:
            return False
        if self.idle_timeout and self.clock() - used > self.idle_timeout / 1000:
            self.log_out(token)
            return False
        self.sessions[token or ""] = self.clock()
        return True

    def log_out(self, token: str | None) -> None:
        """End a session."""
        self.sessions.pop(token or "", None)

    def expire(self) -> None:
        """End all sessions, as if nobody had used them for too long."""
        self.sessions.clear()

    # ---- file systems

    def add(self, file_system: FileSystem) -> FileSystem:
        """Put a file system on the array."""
        if file_system.name in self.file_systems:
            raise Refused(400, "File system already exists.", file_system.name)
        self.file_systems[file_system.name] = file_system
        return file_system

    def find(self, name: str) -> FileSystem:
        """A file system by its name."""
        try:
            return self.file_systems[name]
        except KeyError:
            raise Refused(400, "File system does not exist.", name) from None

    def change(self, name: str, changes: dict[str, Any], ignore_usage: bool = False) -> FileSystem:
        """
        Set what clients may set of a file system.

        :param changes: as a PATCH has it.
        :param ignore_usage: whether a hard limit may be less than what is written.
        """
        found = self.find(name)
        if found.destroyed and changes != {"destroyed": False}:
            raise Refused(400, "File system is destroyed.", name)
        provisioned = found.provisioned
        if "provisioned" in changes:
            provisioned = self._size(changes["provisioned"], name)
        hard = self._flag(changes.get("hard_limit_enabled", found.hard_limit_enabled), name)
        limits = {"provisioned", "hard_limit_enabled"} & changes.keys()
        if limits and hard and not ignore_usage and (provisioned or found.virtual) < found.virtual:
            raise Refused(400, "Cannot set a hard limit below the usage of the file system.", name)
        quotas = {"default_user_quota", "default_group_quota"} & changes.keys()
        unknown = changes.keys() - limits - quotas - found.settings.keys() - {"destroyed", "name"}
        if unknown or changes.get("name", name) != name:
            raise Refused(400, f"Invalid parameter: {', '.join(sorted(unknown)) or 'name'}.", name)
        for quota in quotas:
            setattr(found, quota, self._size(changes[quota], name) or 0)
        found.provisioned, found.hard_limit_enabled = provisioned, hard
        if "destroyed" in changes:
            destroyed = self._flag(changes["destroyed"], name)
            found.eradicated_at = self.now() + ERADICATION_DELAY if destroyed else None
        for setting in found.settings.keys() & changes.keys():
            if isinstance(found.settings[setting], dict) and isinstance(changes[setting], dict):
                found.settings[setting] = {**found.settings[setting], **changes[setting]}
            else:
                found.settings[setting] = changes[setting]
        return found

    def eradicate(self, name: str) -> None:
        """Give up a destroyed file system for good."""
        found = self.find(name)
        if not found.destroyed:
            raise Refused(400, "File system must be destroyed before it is eradicated.", name)
        del self.file_systems[name]
        for quotas in (self.user_quotas, self.group_quotas):
            for key in [key for key, quota in quotas.items() if quota.file_system is found]:
                del quotas[key]

    @staticmethod
    def _size(value: Any, name: str) -> int | None:
        """Bytes; none for no limit, which clients write as an empty string, or as 0."""
        if value == "" or value is None:
            return None
        if not isinstance(value, int) or isinstance(value, bool) or value < 0:
            raise Refused(400, "Invalid size.", name)
        return value or None

    @staticmethod
    def _flag(value: Any, name: str) -> bool:
        if not isinstance(value, bool):
            raise Refused(400, "Invalid value, true or false is expected.", name)
        return value

    # ---- what it tells of itself

    def show(self) -> dict[str, Any]:
        """All that any version of the API tells of the array."""
        return {
            "name": self.name,
            "id": self.id,
            "_as_of": self.now(),
            "os": "Purity//FB",
            "revision": self.revision,
            "version": self.version,
            "time_zone": "UTC",
            "ntp_servers": ["ntp.example"],
            "banner": None,
            "idle_timeout": self.idle_timeout,
            "smb_mode": "native",
            "eradication_config": {
                "eradication_delay": ERADICATION_DELAY,
                "manual_eradication": "all-enabled",
            },
            "product_type": "FlashBlade",
            "security_update": None,
            "encryption": {
                "data_at_rest": {
                    "enabled": True,
                    "algorithms": ["AES-256-CTR"],
                    "entropy_source": None,
                }
            },
            "network_access_policy": None,
            "default_inbound_tls_policy": None,
            "context": None,
        }

    def space(self) -> dict[str, Any]:
        """How full the array is."""
        return {
            "name": self.name,
            "id": self.id,
            "capacity": self.capacity,
            "parity": 1.0,
            "time": self.now(),
            "context": None,
            "space": total_space(self.file_systems.values()),
        }

    def performance(self, protocol: str) -> Performance:
        """Of all file systems together."""
        total = Performance()
        for file_system in self.file_systems.values():
            total += performance_of(file_system, protocol)
        return total

    def list_blades(self) -> Iterator[dict[str, Any]]:
        """The blades."""
        for number, status in enumerate(self.blades, 1):
            name = f"CH1.FB{number}"
            yield {
                "name": name,
                "id": str(uuid5(_IDS, name)),
                "details": None,
                "progress": None,
                "raw_capacity": 17592186044416,
                "status": status,
                "target": None,
            }

    def list_hardware(self) -> Iterator[dict[str, Any]]:
        """The chassis, and the blades in it."""
        parts: list[tuple[str, str, int, int | None, str]] = [("CH1", "ch", 1, None, "healthy")]
        parts += [
            (f"CH1.FB{number}", "fb", number, number, status)
            for number, status in enumerate(self.blades, 1)
        ]
        for name, kind, index, slot, status in parts:
            yield {
                "name": name,
                "id": str(uuid5(_IDS, f"part {name}")),
                "details": None,
                "identify_enabled": False,
                "index": index,
                "model": "FB-17TB" if kind == "fb" else "CH-FB",
                "part_number": None,
                "serial": f"PSUFB{index:08d}",
                "slot": slot,
                "speed": None,
                "status": status,
                "temperature": None,
                "type": kind,
                "data_mac": None,
                "management_mac": None,
                "sensor_readings": [],
            }


def performance_of(file_system: FileSystem, protocol: str) -> Performance:
    """
    What goes on at a file system.

    :param protocol: one of :data:`PROTOCOLS`, or ``all``.
    """
    total = Performance()
    for name, performance in file_system.performance.items():
        if protocol in ("all", name):
            total += performance
    return total


def total_space(file_systems: Iterable[FileSystem]) -> dict[str, Any]:
    """The space of some file systems together."""
    standing: list[dict[str, Any]] = []
    gone: list[dict[str, Any]] = []
    for file_system in file_systems:
        (gone if file_system.destroyed else standing).append(file_system.space())

    def add(name: str, spaces: list[dict[str, Any]]) -> int:
        return sum(space[name] or 0 for space in spaces)

    virtual, unique = add("virtual", standing), add("unique", standing)
    provisioned = add("total_provisioned", standing)
    left = add("available_provisioned", standing)
    return {
        "virtual": virtual,
        "unique": unique,
        "snapshots": add("snapshots", standing),
        "data_reduction": virtual / unique if unique else 1.0,
        "total_physical": add("total_physical", standing),
        "total_used": add("total_used", standing),
        "total_provisioned": provisioned,
        "available_provisioned": left,
        "available_ratio": left / provisioned if provisioned else None,
        "destroyed": add("unique", gone),
        "destroyed_virtual": add("virtual", gone),
        "shared": 0,
    }


def example(clock: Callable[[], float]) -> Array:
    """An array with a file system that is busy, and some that are not."""
    array = Array(clock)
    array.add(
        FileSystem(
            "FB-NFS1",
            provisioned=10 << 40,
            virtual=3 << 40,
            hard_limit_enabled=True,
            performance={
                "NFS": Performance(120.5, 30.25, 5.0, 1.5e6, 3.2e5, 410.0, 880.5, 120.0),
                "S3": Performance(10.0, 0.0, 0.0, 4.0e6, 0.0, 1500.0, 0.0, 0.0),
            },
        )
    )
    for number in range(25):
        size = number << 30 if number % 3 else None
        array.add(FileSystem(f"fs{number:03d}", provisioned=size, virtual=number << 20))
    return array

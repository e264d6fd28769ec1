"""
Which version of the API tells what: the fields of purity_fb's and py-pure-client's models, with the
version that was the first to have them.
"""

from __future__ import annotations

from typing import Any

#: A version, as numbers that can be compared.
Version = tuple[int, ...]

_PERFORMANCE = (
    "name time reads_per_sec writes_per_sec others_per_sec usec_per_read_op usec_per_write_op"
    " usec_per_other_op bytes_per_op bytes_per_read bytes_per_write"
)
_QUOTA = "name file_system file_system_default_quota quota usage"
#: Operations of NFS: how many of them, and one of them, as the array spells it.
_NFS_OPERATIONS = {
    "accesses": "access",
    "readdirpluses": "readdirplus",
    **{
        f"{one}s": one
        for one in "create fsinfo fsstat getattr link lookup mkdir pathconf read readdir readlink"
        " remove rename rmdir setattr symlink write".split()
    },
    "aggregate_file_metadata_creates": "file_metadata_create",
    "aggregate_file_metadata_modifies": "file_metadata_modify",
    "aggregate_file_metadata_reads": "file_metadata_read",
    "aggregate_share_metadata_reads": "share_metadata_read",
}
#: The fields of its statistics, of which each version has the same but for the other operations.
NFS_FIGURES = " ".join(
    f"{many}_per_sec aggregate_usec_per_{one}_op"
    if many.startswith("aggregate")
    else f"{many}_per_sec usec_per_{one}_op"
    for many, one in _NFS_OPERATIONS.items()
)

#: What an endpoint lists: fields by the first version with them. Those of 1.x and 2.x are apart.
_SINCE: dict[str, dict[str, str]] = {
    "arrays": {
        "1.3": "id name ntp_servers os revision version",
        "1.5": "time_zone",
        "1.10": "banner",
        "1.12": "idle_timeout",
        "2.0": "_as_of banner id idle_timeout name ntp_servers os revision time_zone version",
        "2.2": "smb_mode",
        "2.5": "eradication_config",
        "2.6": "product_type",
        "2.7": "security_update",
        "2.8": "encryption",
        "2.13": "network_access_policy",
        "2.17": "default_inbound_tls_policy",
        "2.22": "context",
    },
    "arrays/space": {
        "1.2": "capacity name parity space time",
        "2.0": "capacity id name parity space time",
        "2.17": "context",
    },
    "arrays/performance": {
        "1.2": f"{_PERFORMANCE} input_per_sec output_per_sec",
        "1.3": "read_bytes_per_sec write_bytes_per_sec",
        "2.0": f"id {_PERFORMANCE} read_bytes_per_sec write_bytes_per_sec",
        "2.17": "context",
    },
    "arrays/nfs-specific-performance": {
        "1.9": f"id name time {NFS_FIGURES} others_per_sec usec_per_other_op",
        "2.0": f"id name time {NFS_FIGURES} aggregate_other_per_sec aggregate_usec_per_other_op",
        "2.17": "context",
    },
    "blades": {
        "1.2": "details name progress raw_capacity status target",
        "1.8": "id",
        "2.0": "details id name progress raw_capacity status target",
    },
    "hardware": {
        "1.2": "details identify_enabled index model name serial slot speed status temperature"
        " type",
        "2.0": "details id identify_enabled index model name serial slot speed status temperature"
        " type",
        "2.8": "part_number",
        "2.16": "data_mac management_mac",
        "2.18": "sensor_readings",
    },
    "file-systems": {
        "1.0": "created fast_remove_directory_enabled http name nfs provisioned smb"
        " snapshot_directory_enabled space",
        "1.1": "destroyed time_remaining",
        "1.4": "hard_limit_enabled",
        "1.6": "default_group_quota default_user_quota",
        "1.8": "id",
        "1.9": "promotion_status requested_promotion_state source writable",
        "1.11": "multi_protocol",
        "2.0": "created default_group_quota default_user_quota destroyed"
        " fast_remove_directory_enabled hard_limit_enabled http id multi_protocol name nfs"
        " promotion_status provisioned requested_promotion_state smb snapshot_directory_enabled"
        " source space time_remaining writable",
        "2.13": "group_ownership",
        "2.15": "eradication_config",
        "2.16": "storage_class",
        "2.17": "context qos_policy",
        "2.18": "node_group",
        "2.19": "realms",
        "2.23": "workload",
    },
    "file-systems/performance": {
        "1.5": f"{_PERFORMANCE} read_bytes_per_sec write_bytes_per_sec",
        "1.8": "id",
        "2.0": f"id {_PERFORMANCE} read_bytes_per_sec write_bytes_per_sec",
    },
    "quotas/users": {"1.6": f"{_QUOTA} user", "2.0": f"{_QUOTA} user", "2.17": "context"},
    "quotas/groups": {"1.6": f"{_QUOTA} group", "2.0": f"{_QUOTA} group", "2.17": "context"},
    # Within these.
    "file_system": {"1.5": "name resource_type", "2.0": "id name resource_type"},
    "space": {
        "1.0": "data_reduction snapshots total_physical unique virtual",
        "2.0": "data_reduction snapshots total_physical unique virtual",
        "2.11": "available_provisioned available_ratio destroyed destroyed_virtual"
        " total_provisioned",
        "2.15": "shared",
        "2.16": "total_used",
    },
    "nfs": {
        "1.0": "enabled rules",
        "1.6": "v3_enabled v4_1_enabled",
        "2.0": "rules v3_enabled v4_1_enabled",
        "2.3": "export_policy",
    },
    "smb": {
        "1.2": "acl_mode enabled",
        "2.0": "enabled",
        "2.10": "client_policy share_policy",
        "2.12": "continuous_availability_enabled",
    },
}

_NESTED = ("file_system", "space", "nfs", "smb")


def parse(version: str) -> Version:
    """A version as numbers."""
    return tuple(int(part) for part in version.split("."))


def fields(kind: str, version: Version) -> list[str]:
    """
    What a version tells.

    :param kind: an endpoint, or what is nested in its items.
    :return: names of fields; none when the version does not have the endpoint.
    """
    found: list[str] = []
    for since, names in _SINCE.get(kind, {}).items():
        first = parse(since)
        if first[0] == version[0] and first <= version:
            found += names.split()
    return found


def show(kind: str, item: dict[str, Any], version: Version) -> dict[str, Any]:
    """What a version tells of an item, of all that there is to tell."""
    shown: dict[str, Any] = {}
    for name in fields(kind, version):
        value = item.get(name)
        if name in _NESTED and isinstance(value, dict):
            value = show(name, value, version)
        shown[name] = value
    return shown

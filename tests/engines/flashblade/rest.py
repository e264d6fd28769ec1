"""
The REST API, in all of its versions: what each endpoint answers, as an object of JSON.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from attrs import frozen

from tests.engines.flashblade.array import (
    PROTOCOLS,
    Array,
    FileSystem,
    Performance,
    Quota,
    Refused,
    performance_of,
    total_space,
)
from tests.engines.flashblade.fields import Version, fields, show
from tests.engines.flashblade.listing import Item, Page, Query

Reply = dict[str, Any] | None


@frozen
class Call:
    """
    A request to an endpoint.

    :ivar version: of the API.
    :ivar body: of a POST or PATCH.
    """

    array: Array
    version: Version
    endpoint: str
    query: Query
    body: dict[str, Any]

    @property
    def is_first(self) -> bool:
        """Whether it is made by 1.x."""
        return self.version[0] == 1

    def listing(
        self, items: Iterable[Item], total: Callable[[list[Item]], Any] | None = None
    ) -> Reply:
        """
        Answer with a page of items.

        :param items: all, with all that is to tell of them.
        :param total: makes one of those that were selected.
        """
        token, start = ("token", "start") if self.is_first else ("continuation_token", "offset")
        page = Page.select(list(items), self.query, token, start, self.array.max_page)
        pages = {"continuation_token": page.token, "total_item_count": len(page.selected)}
        reply: dict[str, Any] = {"pagination_info": pages} if self.is_first else pages
        reply["items"] = [self.show(item) for item in page.items]
        if total is not None:
            reply["total"] = total(page.selected)
        return reply

    def changed(self, *items: Item) -> Reply:
        """Answer with what was made or changed."""
        return {"items": [self.show(item) for item in items]}

    def show(self, item: Item) -> Item:
        """What this version tells of an item."""
        return show(self.endpoint, item, self.version)

    def required(self, *names: str) -> list[str]:
        """The names that a change is about, by the first of some parameters that is given."""
        for name in names:
            if given := self.query.names(name):
                return given
        raise Refused(400, f"Missing required parameter: {names[0]}.")


def _get_arrays(call: Call) -> Reply:
    return call.listing([call.array.show()])


def _get_arrays_space(call: Call) -> Reply:
    return call.listing([call.array.space()])


def _get_arrays_performance(call: Call) -> Reply:
    shown = call.array.performance(_protocol(call) or "all").show()
    if call.is_first:
        shown = {name: int(value) for name, value in shown.items()}
    return call.listing([{**_head(call, call.array.name, call.array.id), **shown}])


def _get_nfs_performance(call: Call) -> Reply:
    performance = call.array.performance("NFS")
    figures = {
        **dict.fromkeys(fields(call.endpoint, call.version), 0.0),
        "reads_per_sec": performance.reads_per_sec,
        "writes_per_sec": performance.writes_per_sec,
        # All that is neither read nor written is taken for this one operation.
        "getattrs_per_sec": performance.others_per_sec,
        "aggregate_file_metadata_reads_per_sec": performance.others_per_sec,
        "usec_per_read_op": performance.usec_per_read_op,
        "usec_per_write_op": performance.usec_per_write_op,
        "usec_per_getattr_op": performance.usec_per_other_op,
        "aggregate_usec_per_file_metadata_read_op": performance.usec_per_other_op,
    }
    if call.is_first:
        figures = {name: int(value) for name, value in figures.items()}
    return call.listing([{**figures, **_head(call, call.array.name, call.array.id)}])


def _get_blades(call: Call) -> Reply:
    return call.listing(call.array.list_blades())


def _get_hardware(call: Call) -> Reply:
    return call.listing(call.array.list_hardware())


def _head(call: Call, name: str | None, id: str | None) -> Item:
    return {"name": name, "id": id, "time": call.array.now(), "context": None}


def _protocol(call: Call) -> str | None:
    protocol = call.query.text("protocol")
    if protocol is not None and protocol not in (*PROTOCOLS, "all"):
        raise Refused(400, "Invalid protocol.", protocol)
    return protocol


# ---- file systems


def _file_system(call: Call, file_system: FileSystem) -> Item:
    item = file_system.show(call.array.now())
    if call.is_first and item["provisioned"] is None:
        # 1.x writes no limit as 0, 2.x as null.
        item["provisioned"] = 0
    return item


def _names_to_change(call: Call) -> list[str]:
    by_id = {one.id: one.name for one in call.array.file_systems.values()}
    if ids := call.query.names("ids"):
        for id in ids:
            if id not in by_id:
                raise Refused(400, "File system does not exist.", id)
        return [by_id[id] for id in ids]
    return call.required("name" if call.is_first else "names")


def _get_file_systems(call: Call) -> Reply:
    array = call.array
    items = [_file_system(call, one) for one in array.file_systems.values()]
    destroyed = call.query.flag("destroyed")
    if destroyed is not None and not call.is_first:
        items = [item for item in items if item["destroyed"] == destroyed]

    def total(selected: list[Item]) -> Item:
        empty = dict.fromkeys(fields("file-systems", call.version))
        found = [array.file_systems[item["name"]] for item in selected]
        return call.show(
            {
                **empty,
                "provisioned": sum(one.provisioned or 0 for one in found),
                "space": total_space(found),
            }
        )

    return call.listing(items, total)


def _post_file_systems(call: Call) -> Reply:
    body = dict(call.body)
    name = body.pop("name", None) if call.is_first else call.required("names")[0]
    if not isinstance(name, str) or not name:
        raise Refused(400, "Missing required parameter: name.")
    made = call.array.add(FileSystem(name, created=call.array.now()))
    try:
        call.array.change(name, body)
    except Refused:
        del call.array.file_systems[name]
        raise
    return call.changed(_file_system(call, made))


def _patch_file_systems(call: Call) -> Reply:
    ignore = bool(call.query.flag("ignore_usage"))
    found = [call.array.change(name, call.body, ignore) for name in _names_to_change(call)]
    return call.changed(*(_file_system(call, one) for one in found))


def _delete_file_systems(call: Call) -> Reply:
    for name in _names_to_change(call):
        call.array.eradicate(name)
    return None


def _get_file_systems_performance(call: Call) -> Reply:
    protocol = _protocol(call)
    if protocol is None and call.is_first:
        raise Refused(400, "Missing required parameter: protocol.")
    found = {
        one.name: performance_of(one, protocol or "all")
        for one in call.array.file_systems.values()
        if not one.destroyed
    }
    items = [
        {**_head(call, name, call.array.file_systems[name].id), **performance.show()}
        for name, performance in found.items()
    ]

    def total(selected: list[Item]) -> list[Item]:
        together = sum((found[item["name"]] for item in selected), Performance())
        return [call.show({**_head(call, None, None), **together.show()})]

    return call.listing(items, total)


# ---- quotas of users and groups


@frozen
class Owners:
    """
    Users, or groups.

    :ivar one: how one of them is called.
    :ivar ids: the parameter with their numbers.
    """

    one: str
    ids: str

    def quotas(self, array: Array) -> dict[str, Quota]:
        """Their quotas."""
        return array.user_quotas if self.one == "user" else array.group_quotas

    def show(self, quota: Quota) -> Item:
        """All that any version tells of a quota."""
        file_system = quota.file_system
        return {
            "name": quota.name,
            "file_system": {
                "name": file_system.name,
                "id": file_system.id,
                "resource_type": "file-systems",
            },
            "file_system_default_quota": getattr(file_system, f"default_{self.one}_quota"),
            "quota": quota.limit,
            "usage": quota.usage,
            self.one: {"id": quota.owner, "name": quota.owner_name},
            "context": None,
        }

    def selected(self, call: Call) -> list[Quota]:
        """The quotas that the parameters name."""
        query = call.query
        names = query.names("names")
        owners = query.names(self.ids)
        owner_names = query.names(f"{self.one}_names")
        file_systems = query.names("file_system_names")
        for name in names:
            if name not in self.quotas(call.array):
                raise Refused(400, "Quota does not exist.", name)
        return [
            quota
            for name, quota in self.quotas(call.array).items()
            if (not names or name in names)
            and (not file_systems or quota.file_system.name in file_systems)
            and (not owners or str(quota.owner) in owners)
            and (not owner_names or quota.owner_name in owner_names)
        ]

    def get(self, call: Call) -> Reply:
        """List quotas."""
        return call.listing(self.show(quota) for quota in self.selected(call))

    def post(self, call: Call) -> Reply:
        """Limit some owners on some file systems."""
        owners = call.required(self.ids)
        made = []
        for name in call.required("file_system_names"):
            file_system = call.array.find(name)
            for owner in owners:
                if not owner.isdecimal():
                    raise Refused(400, f"Invalid {self.ids}.", owner)
                quota = Quota(file_system, int(owner), self._limit(call))
                if quota.name in self.quotas(call.array):
                    raise Refused(400, "Quota already exists.", quota.name)
                made.append(quota)
        self.quotas(call.array).update({quota.name: quota for quota in made})
        return call.changed(*map(self.show, made))

    def patch(self, call: Call) -> Reply:
        """Change limits."""
        found = self._to_change(call)
        limit = self._limit(call)
        for quota in found:
            quota.limit = limit
        return call.changed(*map(self.show, found))

    def delete(self, call: Call) -> Reply:
        """Take limits away."""
        for quota in self._to_change(call):
            del self.quotas(call.array)[quota.name]
        return None

    def _to_change(self, call: Call) -> list[Quota]:
        if not call.query.names("names"):
            call.required("file_system_names")
            call.required(self.ids, f"{self.one}_names")
        found = self.selected(call)
        if not found:
            raise Refused(400, "Quota does not exist.")
        return found

    def _limit(self, call: Call) -> int:
        limit = call.body.get("quota")
        if not isinstance(limit, int) or isinstance(limit, bool) or limit <= 0:
            raise Refused(400, "Invalid quota.")
        return limit


USERS, GROUPS = Owners("user", "uids"), Owners("group", "gids")


# ---- all of them

_ENDPOINTS: dict[tuple[str, str], Callable[[Call], Reply]] = {
    ("GET", "arrays"): _get_arrays,
    ("GET", "arrays/space"): _get_arrays_space,
    ("GET", "arrays/performance"): _get_arrays_performance,
    ("GET", "arrays/nfs-specific-performance"): _get_nfs_performance,
    ("GET", "blades"): _get_blades,
    ("GET", "hardware"): _get_hardware,
    ("GET", "file-systems"): _get_file_systems,
    ("POST", "file-systems"): _post_file_systems,
    ("PATCH", "file-systems"): _patch_file_systems,
    ("DELETE", "file-systems"): _delete_file_systems,
    ("GET", "file-systems/performance"): _get_file_systems_performance,
    **{
        (method, f"quotas/{owners.one}s"): function
        for owners in (USERS, GROUPS)
        for method, function in (
            ("GET", owners.get),
            ("POST", owners.post),
            ("PATCH", owners.patch),
            ("DELETE", owners.delete),
        )
    },
}


def answer(method: str, call: Call) -> Reply:
    """
    Do what is asked for.

    :return: the body of the answer; none where there is none.
    :raises Refused: there is no such endpoint in this version, or the array does not do it.
    """
    function = _ENDPOINTS.get((method, call.endpoint))
    if function is None or not fields(call.endpoint, call.version):
        raise Refused(404, "Not found.")
    return function(call)

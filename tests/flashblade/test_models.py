"""
What the simulator tells is what the models of the vendor's clients have, in every version.
"""

from __future__ import annotations

import json
import re
from importlib import import_module
from typing import Any

from purity_fb.fb_client import version_module_dict

from tests.engines.flashblade.array import Quota
from tests.engines.flashblade.fields import fields, parse
from tests.engines.flashblade.listing import Query
from tests.engines.flashblade.rest import Call, answer
from tests.flashblade.case import SimulatorCase

#: Endpoints, and what is nested in their items, with the names of their models.
FIRST = {
    "arrays": "PureArray",
    "arrays/space": "ArraySpace",
    "arrays/performance": "ArrayPerformance",
    "arrays/nfs-specific-performance": "ArrayNfsPerformance",
    "blades": "Blade",
    "hardware": "Hardware",
    "file-systems": "FileSystem",
    "file-systems/performance": "FileSystemPerformance",
    "quotas/users": "QuotasUser",
    "quotas/groups": "QuotasGroup",
    "file_system": "FixedReference",
    "space": "Space",
    "nfs": "NfsRule",
    "smb": "SmbRule",
}
SECOND = {
    "arrays": "Array",
    "arrays/space": "ArraySpace",
    "arrays/performance": "ArrayPerformance",
    "arrays/nfs-specific-performance": "ArrayNfsSpecificPerformance",
    "blades": "Blade",
    "hardware": "Hardware",
    "file-systems": "FileSystem",
    "file-systems/performance": "FileSystemPerformance",
    "quotas/users": "UserQuota",
    "quotas/groups": "GroupQuota",
    "file_system": "FixedReference",
    "space": "Space",
    "nfs": "Nfs",
    "smb": "Smb",
}
NESTED = ("file_system", "space", "nfs", "smb")


def model_of_first(version: str, name: str) -> Any:
    """A model of purity_fb; none when the version does not have it."""
    return getattr(version_module_dict[version].models, name, None)


def model_of_second(version: str, name: str) -> Any:
    """A model of py-pure-client."""
    package = f"pypureclient.flashblade.FB_{version.replace('.', '_')}.models"
    return getattr(import_module(package), name)


class ModelTests(SimulatorCase):
    """No field is missing, none is made up, and all have the types that clients expect."""

    def setUp(self) -> Any:
        busy = super().setUp()
        found = self.array.find("FB-NFS1")
        self.array.user_quotas["FB-NFS1/1000"] = Quota(found, 1000, 1 << 30, "jane", 5)
        self.array.group_quotas["FB-NFS1/100"] = Quota(found, 100, 1 << 30)
        return busy

    def items(self, version: str, endpoint: str) -> list[dict[str, Any]]:
        """What an endpoint lists, after a journey as JSON."""
        query = Query({"protocol": "NFS"})
        reply = answer("GET", Call(self.array, parse(version), endpoint, query, {}))
        assert reply is not None
        total = reply.get("total", [])
        read = json.loads(
            json.dumps(reply["items"] + (total if isinstance(total, list) else [total]))
        )
        self.assertTrue(read)
        return list(read)

    def test_fields_of_first(self) -> None:
        """1.x, with purity_fb."""
        compared = 0
        for version in version_module_dict:
            for kind, name in FIRST.items():
                model = model_of_first(version, name)
                expected = set(model.attribute_map.values()) if model else set()
                known = fields(kind, parse(version))
                self.assertEqual(set(known), expected, (version, kind))
                self.assertEqual(len(known), len(expected), (version, kind))
                compared += bool(expected)
        self.assertGreater(compared, 100)

    def test_fields_of_second(self) -> None:
        """2.x, with py-pure-client."""
        for minor in range(30):
            for kind, name in SECOND.items():
                model = model_of_second(f"2.{minor}", name)
                expected = {field.alias for field in model.__fields__.values()}
                known = fields(kind, (2, minor))
                self.assertEqual(set(known), expected, (minor, kind))
                self.assertEqual(len(known), len(expected), (minor, kind))

    def test_types_of_first(self) -> None:
        """purity_fb would convert what it gets, so the types are compared with what it says."""
        for version in version_module_dict:
            for endpoint, name in FIRST.items():
                model = model_of_first(version, name)
                if model is None or endpoint in NESTED:
                    continue
                for item in self.items(version, endpoint):
                    self.assert_first(version, name, item)

    def assert_first(self, version: str, kind: str, value: Any) -> None:
        """A value is of a type of purity_fb."""
        if value is None:
            return
        simple = {"int": (int,), "float": (int, float), "str": (str,), "bool": (bool,)}
        if inner := re.fullmatch(r"list\[(.*)\]", kind):
            self.assertIsInstance(value, list)
            for one in value:
                self.assert_first(version, inner[1], one)
        elif kind in simple:
            self.assertIn(type(value), simple[kind], (version, kind, value))
        elif kind == "ResourceType":
            self.assertIsInstance(value, str)
        else:
            model = model_of_first(version, kind)
            types = {model.attribute_map[key]: kind for key, kind in model.swagger_types.items()}
            self.assertLessEqual(set(value), set(types), (version, kind))
            for key, one in value.items():
                self.assert_first(version, types[key], one)

    def test_types_of_second(self) -> None:
        """The models of py-pure-client are strict when they are asked to be."""
        for minor in range(30):
            for endpoint, name in SECOND.items():
                if endpoint not in NESTED:
                    for item in self.items(f"2.{minor}", endpoint):
                        model = model_of_second(f"2.{minor}", name).parse_obj(item)
                        self.assertEqual(model.name, item["name"])

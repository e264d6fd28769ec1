"""
The model behind the simulator of a FlashBlade, where the vendor's clients do not come to.
"""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from tests.engines.flashblade.array import (
    API_TOKEN,
    Array,
    FileSystem,
    Performance,
    Quota,
    Refused,
    example,
)
from tests.engines.flashblade.fields import parse
from tests.engines.flashblade.listing import Page, Query, matches
from tests.engines.flashblade.rest import Call, answer

rates = st.integers(0, 10**6).map(float)
performances = st.builds(Performance, *[rates] * 8)


def pages(items: list[dict[str, Any]], limit: int) -> list[list[str]]:
    """Read a listing to its end: the names on each page."""
    found, more = [], {}
    while True:
        page = Page.select(items, Query({"limit": str(limit), **more}), "token", "start", 1000)
        found.append([item["name"] for item in page.items])
        if page.token is None:
            return found
        more = {"token": page.token}


class ListingTests(SynchronousTestCase):
    """Names, filters, order and pages."""

    @given(st.sets(st.text(min_size=1, max_size=4), max_size=12), st.integers(1, 5))
    def test_pages(self, names: set[str], limit: int) -> None:
        """All pages together are the listing, and none but the last is short."""
        found = pages([{"name": name} for name in names], limit)
        self.assertEqual(sum(found, []), sorted(names))
        self.assertEqual({len(page) for page in found[:-1]} - {limit}, set())

    def test_filters(self) -> None:
        """What filters mean."""
        item = {"name": "fs1", "size": 5, "on": True, "none": None, "space": {"virtual": 7}}
        for text, holds in (
            ("name='fs1'", True),
            ("name='f*'", True),
            ('name="g*"', False),
            ("name!='fs1'", False),
            ("size>4", True),
            ("size>='5' and on='True'", True),
            ("(size<5) or (on=true)", True),
            ("size<5 or on=true and name='g'", False),
            ("(size>4 or on=true) and not name='g'", True),
            ("name='a and b' or size=5", True),
            ("space.virtual = 7", True),
            ("none=null", True),
            ("none>1", False),
        ):
            self.assertIs(matches(text, item), holds, text)
        for text in (
            "",
            "nix",
            "contains(name, 'x')",
            "unknown=1",
            "name='a",
            "size=5)",
            "(size=5",
            "on>'x'",
        ):
            self.assertRaises(Refused, matches, text, item)

    def test_bad_parameters(self) -> None:
        """Parameters that are none."""
        for wrong in ({"limit": "x"}, {"limit": "-1"}, {"total_only": "2"}, {"token": "?"}):
            self.assertRaises(Refused, Page.select, [], Query(wrong), "token", "start", 10)


class ArrayTests(SynchronousTestCase):
    """What the array does."""

    def setUp(self) -> None:
        self.now = 1000.0
        self.array: Array = example(lambda: self.now)

    def test_sessions(self) -> None:
        """A session lasts for as long as it is used, or for ever when that is set."""
        token = self.array.log_in(API_TOKEN)
        self.now += 1800
        self.assertTrue(self.array.use(token))
        self.now += 1801
        self.assertFalse(self.array.use(token))
        self.array.idle_timeout = 0
        token = self.array.log_in(API_TOKEN)
        self.now += 1e9
        self.assertTrue(self.array.use(token))
        self.array.expire()
        self.assertFalse(self.array.use(token))
        self.assertFalse(self.array.use(None))

    def test_bad_changes(self) -> None:
        """A change that is refused changes nothing."""
        for changes in (
            {"provisioned": -1},
            {"provisioned": "much"},
            {"provisioned": True},
            {"hard_limit_enabled": 1},
            {"name": "other"},
            {"nix": 1},
            {"provisioned": 1, "created": 2},
        ):
            before = self.array.find("fs001").show(0)
            self.assertRaises(Refused, self.array.change, "fs001", changes)
            self.assertEqual(self.array.find("fs001").show(0), before)

    def test_unlimited(self) -> None:
        """No limit is an empty string, as the vendor's text has it, or 0, or null."""
        for size in ("", 0, None):
            self.array.change("fs001", {"provisioned": 1 << 30})
            self.assertIsNone(self.array.change("fs001", {"provisioned": size}).provisioned)

    def test_eradicated(self) -> None:
        """The quotas of a file system go with it."""
        found = self.array.find("fs001")
        self.array.user_quotas["fs001/1"] = Quota(found, 1, 5)
        self.array.change("fs001", {"destroyed": True})
        self.array.eradicate("fs001")
        self.assertEqual(self.array.user_quotas, {})
        self.assertRaises(Refused, self.array.find, "fs001")

    def test_space(self) -> None:
        """What is destroyed no longer counts as written."""
        array = Array(lambda: self.now)
        array.add(FileSystem("a", provisioned=100, virtual=40, hard_limit_enabled=True))
        array.add(FileSystem("b", virtual=20))
        space = array.space()["space"]
        self.assertEqual((space["virtual"], space["total_provisioned"]), (60, 100))
        self.assertEqual((space["available_provisioned"], space["available_ratio"]), (60, 0.6))
        array.change("b", {"destroyed": True})
        space = array.space()["space"]
        self.assertEqual((space["virtual"], space["destroyed_virtual"]), (40, 20))

    @given(performances, performances)
    def test_performance(self, one: Performance, other: Performance) -> None:
        """Rates are added, and a mean time lies between both."""
        both = one + other
        self.assertEqual(both.reads_per_sec, one.reads_per_sec + other.reads_per_sec)
        if both.reads_per_sec:
            times = sorted([one.usec_per_read_op, other.usec_per_read_op])
            self.assertGreaterEqual(both.usec_per_read_op * (1 + 1e-9), times[0])
            self.assertLessEqual(both.usec_per_read_op * (1 - 1e-9), times[1])


class EndpointTests(SynchronousTestCase):
    """Which endpoints there are."""

    def setUp(self) -> None:
        self.array = example(lambda: 1000.0)

    def get(self, version: str, endpoint: str) -> Any:
        """Ask."""
        query = Query({"protocol": "NFS"})
        return answer("GET", Call(self.array, parse(version), endpoint, query, {}))

    def test_since(self) -> None:
        """Each is there from the version on that brought it."""
        for endpoint, before, since in (
            ("arrays", "1.2", "1.3"),
            ("arrays/performance", "1.1", "1.2"),
            ("arrays/nfs-specific-performance", "1.8.1", "1.9"),
            ("file-systems/performance", "1.4", "1.5"),
            ("quotas/users", "1.5", "1.6"),
        ):
            refused = self.assertRaises(Refused, self.get, before, endpoint)
            self.assertEqual(refused.status, 404)
            self.assertIn("items", self.get(since, endpoint))
            self.assertIn("items", self.get("2.0", endpoint))

    def test_unknown(self) -> None:
        """Others are not, nor is what is nested in items one."""
        for endpoint in ("nix", "space", "nfs", "file-systems/"):
            self.assertRaises(Refused, self.get, "2.0", endpoint)

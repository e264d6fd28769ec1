"""
What is asked of a FlashBlade, in both generations of its API: a simulated one, in memory.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from hypothesis import example as case
from hypothesis import given, settings
from hypothesis import strategies as some
from treq.testing import StubTreq
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase
from twisted.web.resource import Resource
from twisted.web.server import Request
from zope.interface.verify import verifyObject

from backends.purestorage.array import Array
from backends.purestorage.client import RESTClient
from backends.purestorage.interfaces import IArray
from storageproxy.errors import BackendFailure, InvalidParameters, StorageProxyError
from storageproxy.testing import result_of
from tests.engines.flashblade.array import API_TOKEN, example
from tests.engines.flashblade.simulator import Answer, Simulator, error, instead

GIB, TIB = 1 << 30, 1 << 40
URL = "https://array.example.com"

#: What arrays talk about, and what they might say of it.
KEYS = (
    *("items", "errors", "message", "context", "versions", "continuation_token"),
    *("pagination_info", "id", "name", "status", "space", "capacity", "provisioned"),
    *("virtual", "total_physical", "hard_limit_enabled", "destroyed", "reads_per_sec"),
)
VALUES = some.recursive(
    some.none()
    | some.booleans()
    | some.integers()
    | some.sampled_from([10**400, -1, "\ud800", "healthy", "2.9"])
    | some.floats()
    | some.text(),
    lambda inner: some.lists(inner, max_size=2) | some.dictionaries(some.sampled_from(KEYS), inner),
    max_leaves=4,
)
STATUSES = some.sampled_from([200, 200, 400, 403, 404, 500])
BODIES = (
    VALUES
    | some.fixed_dictionaries({"errors": VALUES})
    | some.fixed_dictionaries({"versions": some.lists(VALUES | some.from_regex(r"[12]\.[0-9]+"))})
    | some.dictionaries(some.sampled_from(KEYS[6:]), VALUES).map(
        lambda item: {"items": [{"id": "", "name": "", "status": "", "capacity": 1, **item}]}
    )
)


class ArrayCase:
    """What holds for each version of the API."""

    version: str | None

    def setUp(self) -> None:
        directory = Path(self.mktemp())
        directory.mkdir()
        self.clock = Clock()
        self.clock.advance(1_600_000_000)
        self.simulator = Simulator(self.clock, example(self.clock.seconds), directory)
        self.array = self.simulator.array
        self.treq = StubTreq(self.simulator.app.resource())

    def of(self, name: str) -> Array:
        rest = RESTClient(self.clock, self.treq, "fb", URL, API_TOKEN, self.version, 15.0)
        return Array(rest, "fb", name)

    @property
    def busy(self) -> Array:
        return self.of("FB-NFS1")

    def refused(self, work: Any, kind: type[StorageProxyError] = BackendFailure) -> str:
        message: str = self.assertRaises(kind, result_of, work).message
        return message

    def answer(self, item: Any, where: str) -> None:
        body = {"items": item if isinstance(item, list) else [item]}
        self.simulator.plan(instead(Answer.of(200, body)), 1, where)

    def test_interface(self) -> None:
        """It has all that a volume wants of its array."""
        verifyObject(IArray, self.busy)

    def test_look(self) -> None:
        """A file system that is there can be used."""
        self.assertIsNone(result_of(self.busy.look()))

    def test_missing(self) -> None:
        """One that is not there is told with its key, whatever is asked of it."""
        for work in (
            self.of("nope").look(),
            self.of("nope").usage(),
            self.of("nope").limit(),
        ):
            message = self.refused(work)
            self.assertIn("volume fb", message)
            self.assertIn("purity_fs_name is nope", message)
        self.assertIn("nope", self.refused(self.of("nope").metric()))

    def test_empty(self) -> None:
        """An array that answers with an empty list has none, either."""
        self.answer([], "/file-systems")
        self.assertIn("purity_fs_name is FB-NFS1", self.refused(self.busy.look()))

    def test_destroyed(self) -> None:
        """One that is destroyed is told to be, while it can be recovered."""
        self.array.change("FB-NFS1", {"destroyed": True})
        self.assertIn("destroyed", self.refused(self.busy.look()))

    def test_health(self) -> None:
        """An array whose blades are well is healthy, and says who it is, by text alone."""
        found = result_of(self.busy.health())
        self.assertEqual((found["status"], found["status_info"]), ("healthy", None))
        self.assertEqual(
            found["metadata"],
            {
                "id": self.array.id,
                "name": "fbsim01",
                "os": "Purity//FB",
                "revision": "4007aea5",
                "version": "4.1.2",
                "blade_count": "7",
                "console_url": URL,
            },
        )

    def test_degraded(self) -> None:
        """One with an ill blade is degraded, and says which; an unused one is none."""
        self.array.blades = ["healthy", "critical", "unused", "unhealthy"]
        found = result_of(self.busy.health())
        self.assertEqual(found["status"], "degraded")
        self.assertEqual(
            found["status_info"],
            "blades that are not healthy: CH1.FB2 (critical), CH1.FB4 (unhealthy)",
        )

    def test_many_blades(self) -> None:
        """The blades of all pages are looked at."""
        self.array.max_page = 10
        self.array.blades = ["healthy"] * 44 + ["critical"]
        found = result_of(self.busy.health())
        self.assertEqual(found["metadata"]["blade_count"], "45")
        self.assertIn("CH1.FB45", found["status_info"])
        self.assertEqual(self.simulator.count("GET", "/blades"), 5)

    def test_usage(self) -> None:
        """A file system with a size has that, and what its users have written."""
        self.assertEqual(result_of(self.busy.usage()), (10 * TIB, 3 * TIB))

    def test_unlimited_usage(self) -> None:
        """One without has what it uses, and what is free on the array."""
        self.array.find("fs003").virtual = 5 * GIB
        physical = self.array.space()["space"]["total_physical"]
        expected = 5 * GIB + self.array.capacity - physical
        self.assertEqual(result_of(self.of("fs003").usage()), (expected, 5 * GIB))

    def test_full_array(self) -> None:
        """On an array that is full, it has no more than it uses."""
        self.array.find("fs003").virtual = 5 * GIB
        self.array.capacity = GIB
        self.assertEqual(result_of(self.of("fs003").usage()), (5 * GIB, 5 * GIB))

    def test_metric(self) -> None:
        """The six figures are those of NFS alone, as whole numbers."""
        self.assertEqual(
            result_of(self.busy.metric()),
            {
                "iops_read": 120,
                "iops_write": 30,
                "io_bytes_read": 1_500_000,
                "io_bytes_write": 320_000,
                "io_usec_read": 410,
                "io_usec_write": 880,
            },
        )
        [seen] = [one for one in self.simulator.requests if one.path.endswith("/performance")]
        self.assertEqual(seen.query, {"names": "FB-NFS1", "protocol": "NFS"})

    def test_idle_metric(self) -> None:
        """Where nothing goes on, all of them are 0; so is what the array leaves out."""
        self.assertEqual(set(result_of(self.of("fs001").metric()).values()), {0})
        self.answer({"name": "fs001", "reads_per_sec": None}, "/performance")
        self.assertEqual(set(result_of(self.of("fs001").metric()).values()), {0})

    def test_limit(self) -> None:
        """A size that is enforced is a limit; none, and one that is not enforced, are 0."""
        self.assertEqual(result_of(self.busy.limit()), 10 * TIB)
        self.assertEqual(result_of(self.of("fs000").limit()), 0)
        self.assertEqual(self.array.find("fs001").provisioned, GIB)
        self.assertEqual(result_of(self.of("fs001").limit()), 0)

    def test_set_limit(self) -> None:
        """A limit is set, changed, and taken away, and is read back."""
        for name in ("FB-NFS1", "fs000", "fs001"):
            for size in (20 * TIB, 12345, 0, 5 * TIB):
                result_of(self.of(name).set_limit(size))
                found = self.array.find(name)
                self.assertEqual(
                    (found.provisioned or 0, found.hard_limit_enabled), (size, size > 0)
                )
                self.assertEqual(result_of(self.of(name).limit()), size)

    def test_set_limit_of_one(self) -> None:
        """The other file systems keep what they have."""
        before = {name: one.provisioned for name, one in self.array.file_systems.items()}
        result_of(self.of("fs007").set_limit(TIB))
        after = {name: one.provisioned for name, one in self.array.file_systems.items()}
        self.assertEqual(after, {**before, "fs007": TIB})

    def test_limit_below_usage(self) -> None:
        """A limit may be less than what is used, as everywhere."""
        result_of(self.busy.set_limit(TIB))
        self.assertEqual(result_of(self.busy.limit()), TIB)

    def test_bad_limit(self) -> None:
        """A limit that the array does not take is the manager's mistake, in the array's words."""
        self.simulator.plan(error(400, "Size is too large.", "FB-NFS1"), 1, "/file-systems")
        message = self.refused(self.busy.set_limit(1 << 62), InvalidParameters)
        self.assertIn("FB-NFS1: Size is too large.", message)

    def test_forbidden_limit(self) -> None:
        """One that the user may not set is told in the array's words."""
        self.simulator.plan(error(403, "Operation not permitted."), 2, "/file-systems")
        self.assertIn("Operation not permitted.", self.refused(self.busy.set_limit(1)))

    def test_broken(self) -> None:
        """An array that fails is told in its own words."""
        for work in ("look", "usage", "limit", "metric", "health"):
            self.simulator.plan(error(500, "Internal error."))
            self.simulator.plan(error(500, "Internal error."))
            self.assertIn("Internal error.", self.refused(getattr(self.busy, work)()))
            self.simulator.mend()

    def test_not_understood(self) -> None:
        """Answers of another form are told, with what is wrong with them."""
        for where, item, work in (
            ("/file-systems", {"provisioned": "much"}, "usage"),
            ("/file-systems", {"provisioned": 1, "space": {"virtual": [1]}}, "usage"),
            ("/file-systems", 7, "limit"),
            ("/file-systems", {"hard_limit_enabled": "perhaps"}, "limit"),
            ("/performance", {"reads_per_sec": "many"}, "metric"),
            ("/performance", {"reads_per_sec": 1e400}, "metric"),
            ("/performance", [], "metric"),
            ("/arrays", {"name": "x"}, "health"),
            ("/arrays", [], "health"),
            ("/blades", {"name": "x"}, "health"),
        ):
            self.answer(item, where)
            message = self.refused(getattr(self.busy, work)())
            self.assertIn("volume fb", message)
            self.assertIn(where[1:], message)

    def test_stop(self) -> None:
        """No session is left on the array."""
        array = self.busy
        result_of(array.look())
        self.assertEqual(len(self.array.sessions), 1)
        result_of(array.stop())
        self.assertEqual(self.array.sessions, {})


class NewestTests(ArrayCase, SynchronousTestCase):
    version = None


class FirstTests(ArrayCase, SynchronousTestCase):
    version = "1.8"


class LastOfFirstTests(ArrayCase, SynchronousTestCase):
    version = "1.12"


class SecondTests(ArrayCase, SynchronousTestCase):
    version = "2.0"


class NonsenseTests(SynchronousTestCase):
    """Arrays that say anything."""

    @settings(max_examples=100)
    @case("2.9", "usage", [(400, {"errors": 5})])
    @case("2.9", "usage", [(200, {"items": [{"provisioned": -1}]})])
    @given(
        some.sampled_from([None, "1.8", "2.9"]),
        some.sampled_from(["look", "health", "usage", "metric", "limit"]),
        some.lists(some.tuples(STATUSES, BODIES), min_size=1, max_size=4),
    )
    def test_nonsense(self, version: str | None, name: str, said: list[tuple[int, Any]]) -> None:
        """Whatever an array says is told as JSON, or is an error that names it."""
        replies = iter(said)
        resource = Resource()
        resource.isLeaf = True

        def render(request: Request) -> bytes:
            is_login = request.path == b"/api/login"
            code, content = (200, {}) if is_login else next(replies, said[-1])
            request.setResponseCode(code)
            request.setHeader(b"x-auth-token", b"session")
            return json.dumps(content).encode()

        self.patch(resource, "render", render)
        rest = RESTClient(Clock(), StubTreq(resource), "fb", URL, "T-secret", version, 15.0)
        try:
            found = result_of(getattr(Array(rest, "fb", "FB-NFS1"), name)())
        except StorageProxyError as error:
            self.assertIn("volume fb", error.message)
            error.message.encode()
        else:
            json.dumps(found, allow_nan=False)
            if name == "usage":
                self.assertGreaterEqual(min(found), 0)

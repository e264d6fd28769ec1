"""
What is made of what ceph(8) says. Its answers are those of a cluster (16.2), cut down.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from twisted.internet.defer import Deferred, succeed
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase
from zope.interface.verify import verifyObject

from backends.cephfs.cluster import FRESH, MOST_WORDS, Cluster, ICluster
from storageproxy.errors import VolumeUnavailable
from storageproxy.process import CommandTimedOut, Outcome
from storageproxy.testing import result_of

GOOD = {"status": "HEALTH_OK", "checks": {}, "mutes": []}
SERVERS = {
    "clients": [{"clients": 1, "fs": "cephfs"}],
    "mdsmap": [
        {"name": "a", "rank": 0, "state": "active", "caps": 13},
        {"name": "b", "state": "standby"},
    ],
    "pools": [],
}
FILE_SYSTEMS = [
    {"name": "cephfs", "metadata_pool": "meta", "data_pools": ["data", "more"]},
    {"name": "other", "metadata_pool": "meta2", "data_pools": ["data2"]},
]
RATES = [
    {"pool_name": "meta", "client_io_rate": {"write_bytes_sec": 999, "write_op_per_sec": 9}},
    {
        "pool_name": "data",
        "client_io_rate": {
            "read_bytes_sec": 4096,
            "write_bytes_sec": 8192,
            "read_op_per_sec": 3,
            "write_op_per_sec": 5,
        },
    },
    {"pool_name": "more", "client_io_rate": {"read_bytes_sec": 4, "read_op_per_sec": 1}},
    {"pool_name": "data2", "client_io_rate": {"read_bytes_sec": 100, "read_op_per_sec": 50}},
]


def latency(*nanoseconds: int) -> Any:
    """What ``ceph osd perf`` says of storage daemons that take so long."""
    infos = [{"perf_stats": {"commit_latency_ns": one}} for one in nanoseconds]
    return {"pg_ready": True, "osdstats": {"osd_perf_infos": infos}}


def health(status: str, **checks: str) -> Any:
    """What ``ceph health`` says."""
    summaries = {
        name: {"severity": status, "summary": {"message": said, "count": 1}}
        for name, said in checks.items()
    }
    return {"status": status, "checks": summaries, "mutes": []}


class ClusterCase(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock = Clock()
        self.said: dict[str, Any] = {
            "health": GOOD,
            "fs status": SERVERS,
            "fs ls": FILE_SYSTEMS,
            "osd pool stats": RATES,
            "osd perf": latency(2_000_000, 4_000_000),
        }
        self.asked: list[str] = []
        self.running: list[Deferred[Outcome]] = []
        self.cluster = self.make_cluster()

    def make_cluster(self, file_system: str = "") -> Cluster:
        return Cluster(self.clock, self.run_command, ["ceph", "--name", "x"], "test", file_system)

    def run_command(self, argv: Sequence[str]) -> Deferred[Outcome]:
        self.assertEqual(list(argv[:5]), ["ceph", "--name", "x", "--format", "json"])
        words = " ".join(argv[5:])
        self.asked.append(words)
        answer = self.said[words]
        if isinstance(answer, Deferred | Exception):
            # What is waited for, and what goes wrong.
            return answer if isinstance(answer, Deferred) else fail_with(answer)
        if isinstance(answer, Outcome):
            return succeed(answer)
        # An empty line comes first.
        return succeed(Outcome(0, b"\n" + json.dumps(answer).encode(), b""))

    def info(self) -> dict[str, Any]:
        return result_of(self.cluster.hardware_info())

    def metric(self) -> dict[str, Any]:
        return result_of(self.cluster.performance_metric())


def fail_with(error: Exception) -> Deferred[Outcome]:
    """A command that is not run to its end."""
    failed: Deferred[Outcome] = Deferred()
    failed.errback(error)
    return failed


class StateTests(ClusterCase):
    def test_interface(self) -> None:
        """It has all that volumes ask for."""
        verifyObject(ICluster, self.cluster)

    def test_healthy(self) -> None:
        """A cluster without complaints is healthy."""
        self.assertEqual(
            self.info(),
            {
                "status": "healthy",
                "status_info": None,
                "metadata": {"health": "HEALTH_OK", "metadata_servers": "a: active"},
            },
        )

    def test_complaints(self) -> None:
        """One with complaints is degraded, and says them; offline when no file can be reached."""
        for status, checks, expected in (
            ("HEALTH_WARN", {"OSD_DOWN": "1 osds down", "PG_DEGRADED": "half"}, "degraded"),
            ("HEALTH_ERR", {"OSD_FULL": "1 full osd(s)"}, "degraded"),
            ("HEALTH_ERR", {"MDS_ALL_DOWN": "1 filesystem is offline"}, "offline"),
            ("HEALTH_WHAT", {"NEW": "unheard of"}, "degraded"),
        ):
            self.setUp()
            self.said["health"] = health(status, **checks)
            info = self.info()
            self.assertEqual(info["status"], expected)
            self.assertEqual(info["metadata"]["health"], status)
            for name, said in checks.items():
                self.assertIn(f"{name}: {said}", info["status_info"])

    def test_no_server(self) -> None:
        """Without an active metadata server it is offline."""
        self.said["fs status"] = {"mdsmap": [{"name": "0", "rank": 0, "state": "failed"}]}
        info = self.info()
        self.assertEqual(info["status"], "offline")
        self.assertEqual(info["metadata"]["metadata_servers"], "0: failed")

    def test_no_manager(self) -> None:
        """Without a manager daemon the state is that of its health, and says what is not known."""
        self.said["fs status"] = Outcome(22, b"", b"\nError EINVAL: no active mgr\n")
        info = self.info()
        self.assertEqual(info["status"], "healthy")
        self.assertIn("fs status: EINVAL: no active mgr".partition(": ")[2], info["status_info"])

    def test_unavailable(self) -> None:
        """That nobody can be asked is a state too, which says why."""
        for answer, why in (
            (Outcome(13, b"", b"auth\n[errno 13] RADOS permission denied\n"), "permission denied"),
            (Outcome(-9, b"", b""), "status -9"),
            (Outcome(0, b"Invalid filesystem", b""), "no JSON"),
            (Outcome(0, b"", b""), "no JSON"),
            (CommandTimedOut("ceph: no end after 5 seconds"), "no end"),
            ({"checks": {}}, "cannot be understood"),
            ([], "cannot be understood"),
            ({"status": "HEALTH_OK", "checks": {"A": {}}}, "cannot be understood"),
        ):
            self.setUp()
            self.said["health"] = answer
            info = self.info()
            self.assertEqual((info["status"], info["metadata"]), ("unavailable", {}))
            self.assertIn("volume test: ceph health: ", info["status_info"])
            self.assertIn(why, info["status_info"])

    def test_long(self) -> None:
        """What is said is bounded."""
        checks = {f"CHECK_{number}": "x" * 100 for number in range(100)}
        self.said["health"] = health("HEALTH_WARN", **checks)
        self.assertEqual(len(self.info()["status_info"]), MOST_WORDS)

    def test_file_system(self) -> None:
        """Of several file systems the one that is named is asked about."""
        self.said["fs status other"] = {"mdsmap": []}
        self.cluster = self.make_cluster("other")
        self.assertEqual(self.info()["status"], "offline")


class MetricTests(ClusterCase):
    def test_metric(self) -> None:
        """Numbers are those of the data pools, of one file system when it is named."""
        self.cluster = self.make_cluster("cephfs")
        self.assertEqual(
            self.metric(),
            {
                "iops_read": 4,
                "iops_write": 5,
                "io_bytes_read": 4100,
                "io_bytes_write": 8192,
                "io_usec_read": 0.0,
                "io_usec_write": 3000.0,
            },
        )
        self.cluster = self.make_cluster()
        self.assertEqual(self.metric()["iops_read"], 54)

    def test_idle(self) -> None:
        """Nothing is 0, also in a cluster without storage daemons."""
        self.said["osd pool stats"] = [{"pool_name": "data", "client_io_rate": {}}]
        self.said["osd perf"] = latency()
        self.assertEqual(set(self.metric().values()), {0})

    def test_unavailable(self) -> None:
        """A cluster that does not tell is an error, which says what it says itself."""
        for words in ("fs ls", "osd pool stats", "osd perf"):
            self.setUp()
            self.said[words] = Outcome(1, b"", b"Error: no\n")
            error = self.assertRaises(VolumeUnavailable, self.metric)
            self.assertEqual(error.message, f"volume test: ceph {words}: Error: no")
            self.setUp()
            self.said[words] = {"strange": 1}
            self.assertRaises(VolumeUnavailable, self.metric)


class SharingTests(ClusterCase):
    def test_fresh(self) -> None:
        """An answer is good for some seconds, also when it is an error."""
        for answer in (GOOD, Outcome(1, b"", b"no")):
            self.asked.clear()
            self.said["health"] = answer
            self.clock.advance(FRESH)
            for _ in range(3):
                first = self.info()
                self.clock.advance(FRESH / 4)
            self.assertEqual(self.asked.count("health"), 1)
            self.clock.advance(FRESH / 4)
            self.said["health"] = health("HEALTH_WARN", A="new")
            self.assertNotEqual(self.info(), first)

    def test_at_once(self) -> None:
        """Who asks while a command runs gets its answer; one that gives up takes it from nobody."""
        running: Deferred[Outcome] = Deferred()
        self.said["health"] = running
        callers = [Deferred.fromCoroutine(self.cluster.hardware_info()) for _ in range(5)]
        self.clock.advance(FRESH * 3)
        callers.append(Deferred.fromCoroutine(self.cluster.hardware_info()))
        self.assertEqual(self.asked, ["health"])
        callers[0].addErrback(lambda _: None)
        callers[0].cancel()
        running.callback(Outcome(0, json.dumps(GOOD).encode(), b""))
        for caller in callers[1:]:
            self.assertEqual(self.successResultOf(caller)["status"], "healthy")
        self.assertEqual(self.asked, ["health", "fs status"])

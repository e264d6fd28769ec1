"""
REST 2.x with py-pure-client.
"""

from __future__ import annotations

from typing import Any

from pypureclient import PureError
from pypureclient.configuration import Configuration
from pypureclient.flashblade import (
    Client,
    FileSystemPatch,
    FileSystemPost,
    Filter,
    GroupQuotaPatch,
    GroupQuotaPost,
    Nfs,
    Property,
    UserQuotaPatch,
    UserQuotaPost,
)
from pypureclient.responses import ErrorResponse, ValidResponse
from urllib3.exceptions import HTTPError

from tests.engines.flashblade import simulator
from tests.engines.flashblade.array import API_TOKEN
from tests.flashblade.case import SimulatorCase

GIB = 1 << 30
#: Those that differ most in what they tell, and the first with quotas by policy.
VERSIONS = ("2.0", "2.11", "2.29")


class PureClientCase(SimulatorCase):
    """A test with a client that is logged in."""

    def client(self, version: str | None = "2.29", token: str = API_TOKEN) -> Any:
        """Log in. It blocks."""
        configuration = Configuration(ssl_ca_cert=str(self.simulator.ca))
        configuration.verify_ssl = True
        return Client(
            self.simulator.address,
            version=version,
            api_token=token,
            timeout=20,
            configuration=configuration,
        )

    async def read(
        self, function: Any, *args: Any, **named: Any
    ) -> tuple[ValidResponse, list[Any]]:
        """Call the client; its answer, and the items of its first page."""

        def call() -> tuple[ValidResponse, list[Any]]:
            answer = function(*args, **named)
            self.assertIsInstance(answer, ValidResponse, answer)
            return answer, list(answer.items or [])

        return await self.block(call)

    async def refused(self, function: Any, *args: Any, **named: Any) -> ErrorResponse:
        """Call the client, and return the error that it gets."""
        answer = await self.block(function, *args, **named)
        self.assertIsInstance(answer, ErrorResponse, answer)
        return answer


class SessionTests(PureClientCase):
    """Logging in and out."""

    async def test_newest_version(self) -> None:
        """The newest version that both know is taken."""
        client = await self.block(self.client, None)
        self.assertEqual(client.__module__, "pypureclient.flashblade.FB_2_29.client")
        self.assertEqual(self.array.logins, 1)
        self.array.versions = ["1.12", "2.0", "2.1", "2.2"]
        client = await self.block(self.client, None)
        self.assertEqual(client.__module__, "pypureclient.flashblade.FB_2_2.client")

    async def test_wrong_token(self) -> None:
        """Another token lets nobody in."""
        error = await self.assertFailure(self.block(self.client, token="T-wrong"), PureError)
        self.assertIn("(401)", str(error))
        self.assertEqual(self.array.logins, 0)

    async def test_expired(self) -> None:
        """The client logs in again when its session has ended, whichever status says so."""
        client = await self.block(self.client)
        for number, status in enumerate((403, 401), 2):
            self.array.expired_status = status
            self.now += self.array.idle_timeout / 1000 + 1
            _, [array] = await self.read(client.get_arrays)
            self.assertEqual(array.name, self.array.name)
            self.assertEqual(self.array.logins, number)
            self.assertEqual(len(self.array.sessions), 1)

    async def test_not_allowed(self) -> None:
        """When that does not help, it reports the error that it had first."""
        client = await self.block(self.client)
        self.simulator.plan(simulator.instead(self.forbidden("first")), where="/arrays")
        self.simulator.plan(simulator.instead(self.forbidden("second")), where="/arrays")
        answer = await self.refused(client.get_arrays)
        self.assertEqual((answer.status_code, answer.errors[0].message), (403, "first"))
        self.assertEqual(self.array.logins, 2)

    def forbidden(self, message: str) -> simulator.Answer:
        return simulator.Answer.of(403, {"message": message})

    async def test_untrusted(self) -> None:
        """The client sees a certificate that it cannot trust."""
        for kind in ("expired", "other-host", "unknown"):
            self.simulator.certificate.kind = kind
            error = await self.assertFailure(self.block(self.client), Exception)
            self.assertIn("certificate", str(error))
        self.assertEqual(self.simulator.requests, [])


class ReadTests(PureClientCase):
    """What is read."""

    async def test_array(self) -> None:
        """The array, its space and its blades, in an old version and in a new one."""
        for version in VERSIONS:
            client = await self.block(self.client, version)
            _, [array] = await self.read(client.get_arrays)
            self.assertEqual(
                (array.name, array.os, array.version, array.id, array.idle_timeout),
                ("fbsim01", "Purity//FB", "4.1.2", self.array.id, 1800000),
            )
            self.assertEqual(array.as_of, int(self.now * 1000))
            _, [space] = await self.read(client.get_arrays_space)
            self.assertEqual(space.capacity, self.array.capacity)
            self.assertGreater(space.space.virtual, 3 << 40)
            answer, blades = await self.read(client.get_blades)
            self.assertEqual(answer.total_item_count, 7)
            self.assertEqual({blade.status for blade in blades}, {"healthy"})
            _, [part] = await self.read(client.get_hardware, names=["CH1"])
            self.assertEqual(part.type, "ch")

    async def test_pages(self) -> None:
        """
        A listing goes on from the token of the page before. The client's iterator ends with the
        page, as it waits for a field that only FlashArrays send.
        """
        client = await self.block(self.client)
        self.array.max_page = 10
        found: list[list[str]] = []
        more: dict[str, Any] = {}
        while True:
            answer, items = await self.read(client.get_file_systems, **more)
            self.assertEqual(answer.total_item_count, 26)
            found.append([item.name for item in items])
            if answer.continuation_token is None:
                break
            more = {"continuation_token": answer.continuation_token, "limit": 12}
        self.assertEqual([len(page) for page in found], [10, 10, 6])
        self.assertEqual(sum(found, []), sorted(self.array.file_systems))
        answer, items = await self.read(client.get_file_systems, limit=0)
        self.assertEqual((answer.total_item_count, items), (26, []))
        _, [last] = await self.read(client.get_file_systems, offset=25)
        self.assertEqual(last.name, "fs024")
        self.array.max_page = 1000
        refused = await self.refused(client.get_file_systems, continuation_token="nix!")
        self.assertEqual(refused.status_code, 400)

    async def test_file_systems(self) -> None:
        """A file system, and the sum of all; no limit is null."""
        for version in VERSIONS:
            client = await self.block(self.client, version)
            answer, [limited, unlimited] = await self.read(
                client.get_file_systems, names=["FB-NFS1", "fs000"]
            )
            self.assertEqual((limited.name, limited.provisioned), ("FB-NFS1", 10 << 40))
            self.assertEqual(limited.space.virtual, 3 << 40)
            self.assertIs(limited.hard_limit_enabled, True)
            self.assertEqual(unlimited.name, "fs000")
            self.assertIsNone(getattr(unlimited, "provisioned", None))
            self.assertEqual(answer.total.provisioned, 10 << 40)
            if version != "2.0":
                self.assertEqual(limited.space.available_provisioned, 7 << 40)
        _, [found] = await self.read(client.get_file_systems, ids=[limited.id])
        self.assertEqual(found.name, "FB-NFS1")

    async def test_filter_and_sort(self) -> None:
        """Only some, in another order, by the filters that the client makes."""
        client = await self.block(self.client)
        name, size = Property("name"), Property("provisioned")
        chosen = Filter.and_(name == "fs0*", size > 0)
        answer, items = await self.read(
            client.get_file_systems, filter=chosen, sort=[size.descending().value], limit=3
        )
        self.assertEqual([one.name for one in items], ["fs023", "fs022", "fs020"])
        self.assertIsNone(answer.continuation_token)
        _, items = await self.read(
            client.get_file_systems, filter=Filter.or_(name == "fs001", name == "fs002")
        )
        self.assertEqual([one.name for one in items], ["fs001", "fs002"])
        answer, items = await self.read(client.get_file_systems, total_only=True)
        self.assertEqual((answer.total_item_count, items), (26, []))
        answer, items = await self.read(client.get_file_systems, destroyed=True)
        self.assertEqual((answer.total_item_count, items), (0, []))
        refused = await self.refused(client.get_file_systems, filter="name ~ 'x'")
        self.assertEqual(refused.status_code, 400)

    async def test_performance(self) -> None:
        """What goes on at a file system, by NFS or in all, and at the array."""
        for version in VERSIONS:
            client = await self.block(self.client, version)
            answer, [found] = await self.read(
                client.get_file_systems_performance, names=["FB-NFS1"], protocol="NFS"
            )
            [total] = answer.total
            for one in (found, total):
                self.assertEqual(
                    (one.reads_per_sec, one.writes_per_sec, one.others_per_sec),
                    (120.5, 30.25, 5.0),
                )
                self.assertEqual((one.read_bytes_per_sec, one.write_bytes_per_sec), (1.5e6, 3.2e5))
                self.assertEqual((one.usec_per_read_op, one.usec_per_write_op), (410.0, 880.5))
            self.assertEqual((found.name, found.time), ("FB-NFS1", int(self.now * 1000)))
            _, [found] = await self.read(client.get_file_systems_performance, names=["FB-NFS1"])
            self.assertEqual(found.reads_per_sec, 130.5)
            _, [array] = await self.read(client.get_arrays_performance, protocol="NFS")
            self.assertEqual(array.reads_per_sec, 120.5)
            _, [nfs] = await self.read(client.get_arrays_nfs_specific_performance)
            self.assertEqual((nfs.reads_per_sec, nfs.usec_per_write_op), (120.5, 880.5))

    async def test_unknown_name(self) -> None:
        """A name that does not exist is an error, not an empty list."""
        client = await self.block(self.client)
        answer = await self.refused(client.get_file_systems, names=["FB-NFS1", "nix"])
        [error] = answer.errors
        self.assertEqual((answer.status_code, error.context), (400, "nix"))
        self.assertIn("not exist", error.message)

    async def test_request_ids(self) -> None:
        """The array gives back the id of a request."""
        client = await self.block(self.client)
        answer, _ = await self.read(client.get_arrays, x_request_id="this-one")
        self.assertEqual(answer.headers.x_request_id, "this-one")


class ChangeTests(PureClientCase):
    """What is changed."""

    async def test_limit(self) -> None:
        """The size of a file system, and whether it holds."""
        found = self.array.find("fs001")
        for version in VERSIONS:
            client = await self.block(self.client, version)
            change = FileSystemPatch(provisioned=5 * GIB, hard_limit_enabled=True)
            _, [changed] = await self.read(
                client.patch_file_systems, names=["fs001"], file_system=change
            )
            self.assertEqual((changed.provisioned, changed.hard_limit_enabled), (5 * GIB, True))
            self.assertEqual((found.provisioned, found.hard_limit_enabled), (5 * GIB, True))
            change = FileSystemPatch(provisioned=0, hard_limit_enabled=False)
            await self.read(client.patch_file_systems, names=["fs001"], file_system=change)
            self.assertEqual((found.provisioned, found.hard_limit_enabled), (None, False))

    async def test_below_usage(self) -> None:
        """A hard limit cannot be less than what is written, but for those who insist."""
        client = await self.block(self.client)
        change = FileSystemPatch(provisioned=GIB)
        answer = await self.refused(
            client.patch_file_systems, names=["FB-NFS1"], file_system=change
        )
        self.assertEqual((answer.status_code, answer.errors[0].context), (400, "FB-NFS1"))
        self.assertEqual(self.array.find("FB-NFS1").provisioned, 10 << 40)
        await self.read(
            client.patch_file_systems, names=["FB-NFS1"], file_system=change, ignore_usage=True
        )
        self.assertEqual(self.array.find("FB-NFS1").provisioned, GIB)

    async def test_life(self) -> None:
        """A file system is made, destroyed, brought back, and eradicated in the end."""
        client = await self.block(self.client)
        body = FileSystemPost(provisioned=GIB, nfs=Nfs(v3_enabled=True, rules="*(ro)"))
        _, [made] = await self.read(client.post_file_systems, names=["new"], file_system=body)
        self.assertEqual((made.name, made.provisioned, made.nfs.rules), ("new", GIB, "*(ro)"))
        again = await self.refused(client.post_file_systems, names=["new"], file_system=body)
        self.assertEqual(again.status_code, 400)
        alive = await self.refused(client.delete_file_systems, names=["new"])
        self.assertEqual(alive.status_code, 400)
        patch, patched = FileSystemPatch, client.patch_file_systems
        _, [gone] = await self.read(patched, names=["new"], file_system=patch(destroyed=True))
        self.assertEqual((gone.destroyed, gone.time_remaining), (True, 24 * 3600 * 1000))
        stuck = await self.refused(patched, names=["new"], file_system=patch(provisioned=1))
        self.assertEqual(stuck.status_code, 400)
        _, [back] = await self.read(patched, names=["new"], file_system=patch(destroyed=False))
        self.assertFalse(back.destroyed)
        await self.read(patched, names=["new"], file_system=patch(destroyed=True))
        answer = await self.block(client.delete_file_systems, names=["new"])
        self.assertIsInstance(answer, ValidResponse)
        self.assertNotIn("new", self.array.file_systems)

    async def test_quotas(self) -> None:
        """Users and groups have quotas on a file system; directories have none."""
        client = await self.block(self.client)
        for one, ids, post, patch in (
            ("user", "uids", UserQuotaPost, UserQuotaPatch),
            ("group", "gids", GroupQuotaPost, GroupQuotaPatch),
        ):
            whom: dict[str, Any] = {"file_system_names": ["FB-NFS1"], ids: [1000]}
            _, [made] = await self.read(
                getattr(client, f"post_quotas_{one}s"), quota=post(quota=GIB), **whom
            )
            self.assertEqual((made.quota, getattr(made, one).id), (GIB, 1000))
            self.assertEqual(made.file_system.name, "FB-NFS1")
            _, [changed] = await self.read(
                getattr(client, f"patch_quotas_{one}s"), quota=patch(quota=2 * GIB), **whom
            )
            self.assertEqual(changed.quota, 2 * GIB)
            listing = getattr(client, f"get_quotas_{one}s")
            _, [found] = await self.read(listing)
            self.assertEqual(found.name, "FB-NFS1/1000")
            answer = await self.block(getattr(client, f"delete_quotas_{one}s"), **whom)
            self.assertIsInstance(answer, ValidResponse)
            self.assertEqual((await self.read(listing))[1], [])


class FaultTests(PureClientCase):
    """What goes wrong, as the client sees it."""

    async def test_overloaded(self) -> None:
        """It comes again when the array has said when, for each way to say that it is busy."""
        client = await self.block(self.client)
        for fault in (
            simulator.overloaded(429, Retry_After="0"),
            simulator.overloaded(503, RateLimit_Reset="0"),
            simulator.overloaded(500, RateLimit_Reset="0"),
        ):
            before = len(self.simulator.requests)
            self.simulator.plan(fault)
            _, items = await self.read(client.get_arrays)
            self.assertEqual(len(items), 1)
            self.assertEqual(len(self.simulator.requests) - before, 2)

    async def test_busy_at_login(self) -> None:
        """The array may be too busy to let anybody in."""
        self.simulator.plan(simulator.overloaded(RateLimit_Reset="0"), where="/login")
        await self.block(self.client)
        self.assertEqual((self.array.logins, self.simulator.count("POST", "/login")), (1, 2))

    async def test_error(self) -> None:
        """An error of the array's own is told at once; one of what is in between is not."""
        client = await self.block(self.client)
        self.simulator.plan(simulator.error(500, "Broken.", "fs1"))
        answer = await self.refused(client.get_arrays)
        [error] = answer.errors
        self.assertEqual(
            (answer.status_code, error.context, error.message), (500, "fs1", "Broken.")
        )
        self.simulator.plan(simulator.error(502, "Bad gateway."))
        _, items = await self.read(client.get_arrays)
        self.assertEqual(len(items), 1)

    async def test_garbage(self) -> None:
        """An error that is no JSON."""
        client = await self.block(self.client)
        page = simulator.Answer(400, b"<html>", "text/html")
        self.simulator.plan(simulator.instead(page))
        answer = await self.refused(client.get_arrays)
        self.assertEqual(answer.errors[0].message, "Response is not a valid JSON")

    async def test_cut_off(self) -> None:
        """Half an answer is asked for again, as is none."""
        client = await self.block(self.client)
        before = len(self.simulator.requests)
        self.simulator.plan(simulator.cut_off)
        self.simulator.plan(simulator.dropped)
        _, items = await self.read(client.get_arrays)
        self.assertEqual(len(items), 1)
        self.assertEqual(len(self.simulator.requests) - before, 3)

    async def test_answer_lost(self) -> None:
        """A change is never made twice: whether it was made is not known then."""
        client = await self.block(self.client)
        self.simulator.plan(simulator.answer_lost)
        change = FileSystemPatch(provisioned=7 * GIB)
        await self.assertFailure(
            self.block(client.patch_file_systems, names=["fs001"], file_system=change), HTTPError
        )
        self.assertEqual(self.simulator.count("PATCH"), 1)
        self.assertEqual(self.array.find("fs001").provisioned, 7 * GIB)

    async def test_held(self) -> None:
        """The client waits for an answer."""
        client = await self.block(self.client)
        held = simulator.Held()
        self.simulator.plan(held)
        waiting = self.block(client.get_arrays)
        await held.wait()
        held.release()
        self.assertEqual((await waiting).status_code, 200)

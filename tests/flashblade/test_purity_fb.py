"""
REST 1.x with purity_fb.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from purity_fb import PurityFb
from purity_fb.api_client.rest import ApiException
from urllib3.exceptions import HTTPError, MaxRetryError

from tests.engines.flashblade import simulator
from tests.engines.flashblade.array import API_TOKEN
from tests.flashblade.case import SimulatorCase

GIB = 1 << 30


class PurityFbCase(SimulatorCase):
    """A test with a client that is logged in."""

    def client(self, version: str = "1.12", token: str = API_TOKEN) -> PurityFb:
        """Log in. It blocks."""
        return PurityFb(
            self.simulator.address,
            version=version,
            api_token=token,
            ca_certs_file_path=str(self.simulator.ca),
        )


class SessionTests(PurityFbCase):
    """Logging in and out."""

    async def test_login(self) -> None:
        """An API token is given for the token of a session."""
        client = await self.block(self.client)
        self.assertEqual(self.array.logins, 1)
        [token] = self.array.sessions
        self.assertEqual(client._api_client.default_headers["x-auth-token"], token)
        self.assertEqual(await self.block(client.logout), 200)
        self.assertEqual(self.array.sessions, {})

    async def test_newest_version(self) -> None:
        """The newest version that both know is taken."""
        client = await self.block(
            PurityFb, self.simulator.address, ca_certs_file_path=str(self.simulator.ca)
        )
        self.assertEqual(str(client._version), "1.12")
        self.array.versions = ["1.0", "1.8", "1.8.1", "2.0"]
        client = await self.block(
            PurityFb, self.simulator.address, ca_certs_file_path=str(self.simulator.ca)
        )
        self.assertEqual(str(client._version), "1.8.1")

    async def test_wrong_token(self) -> None:
        """Another token lets nobody in."""
        error = await self.assertFailure(self.block(self.client, token="T-wrong"), ApiException)
        self.assertEqual(error.status, 401)
        self.assertEqual(self.array.logins, 0)

    async def test_expired(self) -> None:
        """A session ends; the client leaves it to its user to log in again."""
        client = await self.block(self.client)
        self.now += self.array.idle_timeout / 1000 - 1
        await self.block(client.arrays.list_arrays)
        self.now += self.array.idle_timeout / 1000 - 1
        await self.block(client.arrays.list_arrays)
        self.now += self.array.idle_timeout / 1000 + 1
        error = await self.assertFailure(self.block(client.arrays.list_arrays), ApiException)
        self.assertEqual(error.status, 403)
        self.assertEqual(list(json.loads(error.body)), ["message"])
        await self.block(client.login, API_TOKEN)
        found = await self.block(client.arrays.list_arrays)
        self.assertEqual([array.name for array in found.items], [self.array.name])
        self.assertEqual(self.array.logins, 2)

    async def test_unknown_authority(self) -> None:
        """The client sees a certificate that it cannot trust."""
        for kind in ("expired", "other-host", "unknown"):
            self.simulator.certificate.kind = kind
            error = await self.assertFailure(self.block(self.client), MaxRetryError, ApiException)
            self.assertIn("certificate", str(error))
        self.assertEqual(self.simulator.requests, [])


class ReadTests(PurityFbCase):
    """What is read."""

    async def test_array(self) -> None:
        """The array, its space and its blades."""
        client = await self.block(self.client)
        [array] = (await self.block(client.arrays.list_arrays)).items
        self.assertEqual(
            (array.name, array.os, array.version, array.id, array.idle_timeout),
            ("fbsim01", "Purity//FB", "4.1.2", self.array.id, 1800000),
        )
        [space] = (await self.block(client.arrays.list_arrays_space)).items
        self.assertEqual(space.capacity, self.array.capacity)
        self.assertGreater(space.space.virtual, 3 << 40)
        blades = (await self.block(client.blade.list_blades)).items
        self.assertEqual([blade.name for blade in blades], [f"CH1.FB{n}" for n in range(1, 8)])
        self.assertEqual({blade.status for blade in blades}, {"healthy"})
        hardware = (await self.block(client.hardware.list_hardware, names=["CH1"])).items
        self.assertEqual([part.type for part in hardware], ["ch"])

    async def test_pages(self) -> None:
        """A listing goes on from the token of the page before."""
        client = await self.block(self.client, "1.8")

        def pages() -> Iterator[list[str]]:
            more: dict[str, Any] = {}
            while True:
                page = client.file_systems.list_file_systems(limit=10, **more)
                self.assertEqual(page.pagination_info.total_item_count, 26)
                yield [found.name for found in page.items]
                if not page.pagination_info.continuation_token:
                    return
                more = {"token": page.pagination_info.continuation_token}

        found = await self.block(lambda: list(pages()))
        self.assertEqual([len(page) for page in found], [10, 10, 6])
        self.assertEqual(sum(found, []), sorted(self.array.file_systems))
        rest = await self.block(client.file_systems.list_file_systems, start=25)
        self.assertEqual([one.name for one in rest.items], ["fs024"])

    async def test_file_systems(self) -> None:
        """A file system, and the sum of all; no limit is 0."""
        client = await self.block(self.client, "1.8")
        names = ["FB-NFS1", "fs000"]
        page = await self.block(client.file_systems.list_file_systems, names=names)
        limited, unlimited = page.items
        self.assertEqual(limited.provisioned, 10 << 40)
        self.assertEqual(limited.space.virtual, 3 << 40)
        self.assertIs(limited.hard_limit_enabled, True)
        self.assertEqual(limited.nfs.rules, "*(rw,no_root_squash)")
        self.assertEqual(unlimited.provisioned, 0)
        self.assertEqual(page.total.provisioned, 10 << 40)

    async def test_filter_and_sort(self) -> None:
        """Only some, in another order."""
        client = await self.block(self.client)
        page = await self.block(
            client.file_systems.list_file_systems,
            filter="name='fs0*' and provisioned>0",
            sort="provisioned-",
            limit=3,
        )
        self.assertEqual([one.name for one in page.items], ["fs023", "fs022", "fs020"])
        self.assertIsNone(page.pagination_info.continuation_token)
        page = await self.block(client.file_systems.list_file_systems, total_only=True)
        self.assertEqual((page.items, page.pagination_info.total_item_count), ([], 26))

    async def test_performance(self) -> None:
        """What goes on at a file system by NFS, and at the array."""
        client = await self.block(self.client)
        page = await self.block(
            client.file_systems.list_file_systems_performance, protocol="NFS", names=["FB-NFS1"]
        )
        [found], [total] = page.items, page.total
        for one in (found, total):
            self.assertEqual(
                (one.reads_per_sec, one.writes_per_sec, one.others_per_sec), (120.5, 30.25, 5.0)
            )
            self.assertEqual((one.read_bytes_per_sec, one.write_bytes_per_sec), (1.5e6, 3.2e5))
            self.assertEqual((one.usec_per_read_op, one.usec_per_write_op), (410.0, 880.5))
        self.assertEqual(
            (found.name, found.time, total.name), ("FB-NFS1", int(self.now * 1000), None)
        )
        [array] = (await self.block(client.arrays.list_arrays_performance)).items
        self.assertEqual((array.reads_per_sec, array.output_per_sec), (130, 5500000))
        [array] = (await self.block(client.arrays.list_arrays_performance, protocol="NFS")).items
        self.assertEqual(array.reads_per_sec, 120)
        [nfs] = (await self.block(client.arrays.list_arrays_nfs_specific_performance)).items
        self.assertEqual((nfs.reads_per_sec, nfs.usec_per_read_op), (120, 410))

    async def test_protocol_is_required(self) -> None:
        """The client itself says so; the array does as well."""
        client = await self.block(self.client)
        await self.assertFailure(
            self.block(client.file_systems.list_file_systems_performance), ValueError, TypeError
        )
        error = await self.assertFailure(
            self.block(client.file_systems.list_file_systems_performance, protocol="nix"),
            ApiException,
        )
        self.assertEqual(error.status, 400)

    async def test_unknown_name(self) -> None:
        """A name that does not exist is an error, not an empty list."""
        client = await self.block(self.client)
        error = await self.assertFailure(
            self.block(client.file_systems.list_file_systems, names=["FB-NFS1", "nix"]),
            ApiException,
        )
        [said] = json.loads(error.body)["errors"]
        self.assertEqual((error.status, said["context"]), (400, "nix"))
        self.assertEqual(set(said), {"code", "context", "message"})

    async def test_too_old(self) -> None:
        """What came later is not there yet."""
        client = await self.block(self.client, "1.8")
        self.assertFalse(hasattr(client.arrays, "list_arrays_nfs_specific_performance"))
        newer = await self.block(self.client, "1.9")
        self.assertTrue(hasattr(newer.arrays, "list_arrays_nfs_specific_performance"))


class ChangeTests(PurityFbCase):
    """What is changed."""

    async def test_limit(self) -> None:
        """The size of a file system, and whether it holds."""
        client = await self.block(self.client)
        model = client.models.FileSystem
        page = await self.block(
            client.file_systems.update_file_systems,
            name="fs001",
            attributes=model(provisioned=5 * GIB, hard_limit_enabled=True),
        )
        self.assertEqual(
            [(one.name, one.provisioned, one.hard_limit_enabled) for one in page.items],
            [("fs001", 5 * GIB, True)],
        )
        found = self.array.find("fs001")
        self.assertEqual((found.provisioned, found.hard_limit_enabled), (5 * GIB, True))
        await self.block(
            client.file_systems.update_file_systems, name="fs001", attributes=model(provisioned=0)
        )
        self.assertIsNone(found.provisioned)

    async def test_below_usage(self) -> None:
        """A hard limit cannot be less than what is written, but for those who insist."""
        client = await self.block(self.client)
        changes = client.models.FileSystem(provisioned=GIB)
        error = await self.assertFailure(
            self.block(client.file_systems.update_file_systems, name="FB-NFS1", attributes=changes),
            ApiException,
        )
        self.assertEqual(error.status, 400)
        self.assertEqual(self.array.find("FB-NFS1").provisioned, 10 << 40)
        await self.block(
            client.file_systems.update_file_systems,
            name="FB-NFS1",
            attributes=changes,
            ignore_usage=True,
        )
        self.assertEqual(self.array.find("FB-NFS1").provisioned, GIB)

    async def test_life(self) -> None:
        """A file system is made, destroyed and eradicated."""
        client = await self.block(self.client)
        api, model = client.file_systems, client.models.FileSystem
        made = model(name="new", provisioned=GIB, nfs=client.models.NfsRule(v3_enabled=True))
        [found] = (await self.block(api.create_file_systems, made)).items
        self.assertEqual((found.name, found.provisioned, found.destroyed), ("new", GIB, False))
        error = await self.assertFailure(self.block(api.create_file_systems, made), ApiException)
        self.assertEqual(error.status, 400)
        error = await self.assertFailure(
            self.block(api.delete_file_systems, name="new"), ApiException
        )
        self.assertEqual(error.status, 400)
        [found] = (
            await self.block(api.update_file_systems, name="new", attributes=model(destroyed=True))
        ).items
        self.assertTrue(found.destroyed)
        self.assertEqual(found.time_remaining, 24 * 3600 * 1000)
        await self.block(api.delete_file_systems, name="new")
        self.assertNotIn("new", self.array.file_systems)

    async def test_quotas(self) -> None:
        """Users and groups have quotas on a file system; directories have none."""
        client = await self.block(self.client)
        models = client.models
        for api, model, one, ids in (
            (client.quotas_users, models.QuotasUser, "user", "uids"),
            (client.quotas_groups, models.QuotasGroup, "group", "gids"),
        ):
            whom: dict[str, Any] = {"file_system_names": ["FB-NFS1"], ids: ["1000"]}
            many = f"{one}_quotas"
            create, update = getattr(api, f"create_{many}"), getattr(api, f"update_{many}")
            [made] = (await self.block(create, quota=model(quota=GIB), **whom)).items
            self.assertEqual((made.quota, getattr(made, one).id), (GIB, 1000))
            self.assertEqual(made.file_system.name, "FB-NFS1")
            [changed] = (await self.block(update, quota=model(quota=2 * GIB), **whom)).items
            self.assertEqual(changed.quota, 2 * GIB)
            [found] = (await self.block(getattr(api, f"list_{many}"))).items
            self.assertEqual(found.quota, 2 * GIB)
            await self.block(getattr(api, f"delete_{many}"), **whom)
            self.assertEqual((await self.block(getattr(api, f"list_{many}"))).items, [])


class FaultTests(PurityFbCase):
    """What goes wrong, as the client sees it."""

    async def test_overloaded(self) -> None:
        """It comes again when the array has said when; else its user is told."""
        client = await self.block(self.client)
        for status in (429, 503):
            before = len(self.simulator.requests)
            self.simulator.plan(simulator.overloaded(status, Retry_After="0"), 2)
            found = await self.block(client.arrays.list_arrays)
            self.assertEqual(len(found.items), 1)
            self.assertEqual(len(self.simulator.requests) - before, 3)
        for status in (429, 503, 500):
            self.simulator.plan(simulator.overloaded(status, RateLimit_Reset="1"))
            error = await self.assertFailure(self.block(client.arrays.list_arrays), ApiException)
            self.assertEqual(error.status, status)
            self.assertEqual(error.headers["RateLimit-Reset"], "1")

    async def test_error(self) -> None:
        """An error of the array's own."""
        client = await self.block(self.client)
        self.simulator.plan(simulator.error(500, "Broken.", "fs1"))
        error = await self.assertFailure(self.block(client.arrays.list_arrays), ApiException)
        [said] = json.loads(error.body)["errors"]
        self.assertEqual((error.status, said), (500, {"context": "fs1", "message": "Broken."}))

    async def test_cut_off(self) -> None:
        """Half an answer is asked for again."""
        client = await self.block(self.client)
        before = len(self.simulator.requests)
        self.simulator.plan(simulator.cut_off)
        self.simulator.plan(simulator.dropped)
        found = await self.block(client.arrays.list_arrays)
        self.assertEqual([one.name for one in found.items], ["fbsim01"])
        self.assertEqual(len(self.simulator.requests) - before, 3)

    async def test_answer_lost(self) -> None:
        """A change is never made twice: whether it was made is not known then."""
        client = await self.block(self.client)
        self.simulator.plan(simulator.answer_lost)
        await self.assertFailure(
            self.block(
                client.file_systems.update_file_systems,
                name="fs001",
                attributes=client.models.FileSystem(provisioned=7 * GIB),
            ),
            HTTPError,
        )
        self.assertEqual(self.simulator.count("PATCH"), 1)
        self.assertEqual(self.array.find("fs001").provisioned, 7 * GIB)

    async def test_held(self) -> None:
        """The client waits for an answer, and gives up."""
        client = await self.block(self.client)
        held = simulator.Held()
        self.simulator.plan(held)
        waiting = self.block(client.arrays.list_arrays)
        await held.wait()
        held.release()
        self.assertEqual(len((await waiting).items), 1)
        client.request_retry = 0
        self.simulator.plan(held)
        await self.assertFailure(
            self.block(client.arrays.list_arrays, _request_timeout=(5, 0.2)), MaxRetryError
        )
        await held.wait(0)

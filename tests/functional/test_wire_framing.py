"""
What both ports have in common: who is let in, what a request looks like, how errors look.
"""

from __future__ import annotations

import json
from typing import Any
from uuid import uuid4

from tests.functional.daemon import AUTH, MANAGER_SECRET
from tests.functional.http11 import Connection, WireTestCase, chunked, request_head

MIB = 2**20


class Admission(WireTestCase):
    """The secret of the manager API."""

    def test_no_secret(self) -> None:
        """A request without the secret is refused."""
        self.assert_problem(self.manager("GET", "/volumes", secret=None), 403)

    def test_empty_secret(self) -> None:
        """An empty secret is refused."""
        self.assert_problem(self.manager("GET", "/volumes", secret=""), 403)

    def test_wrong_secret(self) -> None:
        """A wrong secret is refused."""
        self.assert_problem(self.manager("GET", "/volumes", secret="guess"), 403)

    def test_longer_secret(self) -> None:
        """A secret that only begins with the right one is refused."""
        self.assert_problem(self.manager("GET", "/volumes", secret=MANAGER_SECRET + "x"), 403)

    def test_secret_outside_ascii(self) -> None:
        """A secret with bytes outside of ASCII is refused like any other wrong one."""
        self.assert_problem(self.manager("GET", "/volumes", secret="gehe\xefm"), 403)

    def test_before_routing_path(self) -> None:
        """Nobody learns without the secret which paths exist."""
        self.assert_problem(self.manager("GET", "/no/such/path", secret=None), 403)

    def test_before_routing_method(self) -> None:
        """Nobody learns without the secret which methods a path has."""
        self.assert_problem(self.manager("PUT", "/volumes", secret=None), 403)

    def test_before_parameters(self) -> None:
        """A body is not looked at without the secret."""
        self.assert_problem(self.manager("POST", "/folder/create", secret=None, body=b"{"), 403)

    def test_not_in_the_query(self) -> None:
        """The secret counts in its header only."""
        answer = self.manager("GET", f"/volumes?{AUTH}={MANAGER_SECRET}", secret=None)
        self.assert_problem(answer, 403)

    def test_health_is_open(self) -> None:
        """A load balancer asks for the health without the secret."""
        for path in ("/status", "/livez", "/readyz", "/health"):
            answer = self.manager("GET", path, secret=None)
            self.assertEqual(answer.status, 200, path)
            self.assertEqual(answer.media_type, "application/json", path)
            self.assertIsInstance(answer.json(), dict, path)

    def test_status_is_ok(self) -> None:
        """The status says ok, as in later releases."""
        self.assertEqual(self.manager("GET", "/status", secret=None).json()["status"], "ok")

    def test_client_root(self) -> None:
        """The client API says that it is there, without a token."""
        answer = self.client("GET", "/")
        self.assertEqual(answer.status, 200)
        self.assertEqual(answer.json()["status"], "ok")


class Routing(WireTestCase):
    """Paths and methods that do not exist."""

    def test_root(self) -> None:
        """The root says that all is well."""
        answer = self.manager("GET", "/")
        self.assertEqual(answer.status, 200)
        self.assertEqual(answer.media_type, "application/json")
        self.assertEqual(answer.json()["status"], "ok")

    def test_unknown_path(self) -> None:
        """An unknown path is a 404 with the secret."""
        self.assert_problem(self.manager("GET", "/no/such/path"), 404)

    def test_unknown_path_of_the_client_api(self) -> None:
        """The client API refuses an unknown path in JSON too."""
        self.assert_problem(self.client("GET", "/no/such/path"), 404)

    def test_trailing_slash(self) -> None:
        """A path with a slash more is another path, not a redirect."""
        self.assert_problem(self.manager("GET", "/volumes/"), 404)

    def test_wrong_method(self) -> None:
        """A wrong method is told which ones are allowed."""
        answer = self.manager("POST", "/volumes")
        self.assert_problem(answer, 405)
        self.assertIn("get", answer.words("Allow"))

    def test_allowed_methods_work(self) -> None:
        """What is named as allowed is not refused as not allowed."""
        for path in ("/volumes", "/status"):
            for method in self.manager("POST", path).words("Allow"):
                answer = self.manager(method.upper(), path)
                self.assertNotEqual(answer.status, 405, f"{method} {path}")

    def test_wrong_method_of_a_post_route(self) -> None:
        """A GET of a POST route is told so."""
        answer = self.manager("GET", "/folder/create")
        self.assert_problem(answer, 405)
        self.assertIn("post", answer.words("Allow"))

    def test_both_methods_allowed(self) -> None:
        """Every method of a path is named."""
        answer = self.manager("DELETE", "/volume/quota")
        self.assert_problem(answer, 405)
        self.assertLessEqual({"get", "patch"}, answer.words("Allow"))

    def test_wrong_method_of_download(self) -> None:
        """A POST to the download route is refused in JSON."""
        answer = self.client("POST", "/download")
        self.assert_problem(answer, 405)
        self.assertIn("get", answer.words("Allow"))

    def test_head_of_get_routes(self) -> None:
        """HEAD is not a method of the manager API."""
        for path in ("/volumes", "/volume/hwinfo", "/folder/mount", "/folder/usage"):
            answer = self.manager("HEAD", path)
            self.assertEqual(answer.status, 405, path)
            self.assertEqual(answer.words("Allow"), {"get"}, path)


class JsonIn(WireTestCase):
    """The JSON body that carries the parameters, also of a GET."""

    def hwinfo(self, body: bytes | None, **headers: str) -> Any:
        """Ask for something small with a given body."""
        return self.manager("GET", "/volume/hwinfo", body=body, headers=headers)

    def test_body_of_a_get(self) -> None:
        """A GET takes its parameters from the body."""
        self.assertEqual(self.manager("GET", "/volume/hwinfo", {"volume": "local"}).status, 200)

    def test_answer_is_json(self) -> None:
        """An answer says that it is JSON."""
        answer = self.manager("GET", "/volume/hwinfo", {"volume": "local"})
        self.assertEqual(answer.media_type, "application/json")

    def test_without_content_type(self) -> None:
        """The content type of the parameters is not needed."""
        self.assertEqual(self.hwinfo(b'{"volume": "local"}').status, 200)

    def test_any_content_type(self) -> None:
        """The content type of the parameters is not looked at."""
        headers = {"Content-Type": "application/x-www-form-urlencoded"}
        answer = self.manager("GET", "/volume/hwinfo", body=b'{"volume": "local"}', headers=headers)
        self.assertEqual(answer.status, 200)

    def test_query_string(self) -> None:
        """The query string of the manager API says nothing."""
        self.assert_problem(self.manager("GET", "/volume/hwinfo?volume=local"), 400)

    def test_query_string_beside_a_body(self) -> None:
        """The query string does not replace what the body says."""
        answer = self.manager("GET", "/volume/hwinfo?volume=none", {"volume": "local"})
        self.assertEqual(answer.status, 200)

    def test_unknown_keys(self) -> None:
        """Keys of managers of other eras are ignored."""
        params = {"volume": "local", "extra_args": {"a": 1}, "mode": None}
        self.assertEqual(self.manager("GET", "/volume/hwinfo", params).status, 200)

    def test_malformed(self) -> None:
        """Half a JSON object is a malformed request."""
        self.assert_problem(self.hwinfo(b'{"volume": "lo'), 400, "malformed-request")

    def test_not_unicode(self) -> None:
        """A body that is no UTF-8 is the caller's mistake."""
        self.assert_problem(self.hwinfo(b'{"volume": "\xff\xfe"}'), 400)

    def test_deep_nesting(self) -> None:
        """A body of a hundred thousand brackets is the caller's mistake."""
        self.assert_problem(self.hwinfo(b"[" * 100_000), 400)

    def test_not_an_object(self) -> None:
        """Any other JSON than an object is refused."""
        for body in (b'["volume", "local"]', b'"local"', b"1", b"null", b"true"):
            self.assert_problem(self.hwinfo(body), 400)

    def test_empty_body(self) -> None:
        """No body where parameters are needed is refused."""
        self.assert_problem(self.hwinfo(None), 400)

    def test_body_for_root(self) -> None:
        """The root takes no parameters, not even none in braces."""
        self.assert_problem(self.manager("GET", "/", {}), 400, "malformed-request")

    def test_body_for_volumes(self) -> None:
        """The list of volumes takes no parameters, not even none in braces."""
        self.assert_problem(self.manager("GET", "/volumes", {}), 400, "malformed-request")

    def test_missing_parameters(self) -> None:
        """All missing parameters are named at once, and no optional one."""
        content = self.assert_problem(
            self.manager("POST", "/folder/file/rename", {}), 400, "invalid-api-params"
        )
        self.assertEqual(set(content["data"]), {"volume", "vfid", "relpath", "new_name"})
        for message in content["data"].values():
            self.assertIsInstance(message, str)

    def test_missing_parameters_of_clone(self) -> None:
        """A clone without a target is told what it lacks."""
        content = self.assert_problem(
            self.manager("POST", "/folder/clone", {"src_volume": "local"}),
            400,
            "invalid-api-params",
        )
        self.assertEqual(set(content["data"]), {"src_vfid", "dst_vfid"})

    def test_wrong_types(self) -> None:
        """A volume that is no name is told apart from an unknown one."""
        for value in (None, 7, "", ["local"], {"name": "local"}):
            content = self.assert_problem(
                self.manager("GET", "/volume/hwinfo", {"volume": value}),
                400,
                "invalid-api-params",
            )
            self.assertIn("volume", content["data"], repr(value))

    def test_just_below_the_cap(self) -> None:
        """A body of almost a mebibyte is read."""
        params = {"volume": "local", "padding": "x" * (MIB - 100)}
        self.assertEqual(self.manager("GET", "/volume/hwinfo", params).status, 200)

    def test_above_the_cap(self) -> None:
        """A body above a mebibyte is refused."""
        params = {"volume": "local", "padding": "x" * MIB}
        self.assert_problem(self.manager("GET", "/volume/hwinfo", params), 413)
        self.alive()

    def test_above_the_cap_in_chunks(self) -> None:
        """A body above a mebibyte is refused as well when its length is not told."""
        answer = self.manager(
            "GET",
            "/volume/hwinfo",
            body=chunked(b'{"volume": "local", "padding": "', b"x" * MIB, b'"}'),
            headers={"Transfer-Encoding": "chunked"},
        )
        self.assert_problem(answer, 413)
        self.alive()

    def test_chunks(self) -> None:
        """Parameters may come in chunks."""
        answer = self.manager(
            "GET",
            "/volume/hwinfo",
            body=chunked(b'{"volume"', b': "local"}'),
            headers={"Transfer-Encoding": "chunked"},
        )
        self.assertEqual(answer.status, 200)


class ParameterValues(WireTestCase):
    """How the values of parameters are read."""

    def mkdir(self, **params: Any) -> Any:
        """Make a directory, with the parameters as given."""
        vfid, _ = self.new_folder()
        base = {"volume": "local", "vfid": vfid, "relpath": "d"}
        self.manager("POST", "/folder/file/mkdir", base)
        return self.manager("POST", "/folder/file/mkdir", {**base, **params})

    def test_true(self) -> None:
        """Every spelling of true is taken that the original takes."""
        for value in (True, 1, 1.0, "t", "true", "TRUE", "y", " Yes ", "on", "1", "1.0"):
            self.assertEqual(self.mkdir(exist_ok=value).status, 200, repr(value))

    def test_false(self) -> None:
        """Every spelling of false is taken that the original takes, and null."""
        values = (False, None, 0, 0.0, "false", "False", "n", "no", "off", "0", "none", "0.0")
        for value in values:
            self.assertEqual(self.mkdir(exist_ok=value).status, 422, repr(value))

    def test_neither(self) -> None:
        """What is neither true nor false is refused by name."""
        values: tuple[Any, ...] = ("f", "maybe", "", 2, [], {})
        for value in values:
            content = self.assert_problem(self.mkdir(exist_ok=value), 400, "invalid-api-params")
            self.assertIn("exist_ok", content["data"], repr(value))

    def listing(self, relpath: Any) -> Any:
        """List a path of a folder with one file `a/b/c`."""
        vfid, root = self.new_folder()
        (root / "a" / "b").mkdir(parents=True)
        (root / "a" / "b" / "c").touch()
        params = {"volume": "local", "vfid": vfid, "relpath": relpath}
        return self.manager("POST", "/folder/file/list", params)

    def test_root_paths(self) -> None:
        """The empty path and the dot both mean the root of the folder."""
        for relpath in ("", ".", "./"):
            names = [item["name"] for item in self.listing(relpath).json()["items"]]
            self.assertEqual(names, ["a"], relpath)

    def test_sloppy_paths(self) -> None:
        """Paths as the web UI sends them are taken."""
        for relpath in ("./a/b", "a/b/", "a//b", "a/./b"):
            names = [item["name"] for item in self.listing(relpath).json()["items"]]
            self.assertEqual(names, ["c"], relpath)

    def test_absolute_path(self) -> None:
        """An absolute path is refused by name."""
        content = self.assert_problem(self.listing("/a/b"), 400, "invalid-api-params")
        self.assertIn("relpath", content["data"])

    def test_no_path_at_all(self) -> None:
        """What is no path is refused by name."""
        for relpath in (7, None, {"a": "b"}):
            content = self.assert_problem(self.listing(relpath), 400, "invalid-api-params")
            self.assertIn("relpath", content["data"], repr(relpath))

    def test_nul_byte(self) -> None:
        """A path with a NUL is the caller's mistake."""
        self.assert_problem(self.listing("a\0b"), 400)

    def test_lone_surrogate(self) -> None:
        """A path that no file can have is the caller's mistake."""
        self.assert_problem(self.listing("a\ud800b"), 400)

    def test_long_name(self) -> None:
        """A name longer than the filesystem takes is the caller's mistake."""
        self.assert_problem(self.listing("x" * 300), 400)

    def test_very_long_path(self) -> None:
        """A path longer than the kernel takes is the caller's mistake."""
        self.assert_problem(self.listing("x/" * 5000), 400)


class Ids(WireTestCase):
    """The spellings of a vfolder's id."""

    def mount(self, vfid: Any) -> Any:
        """Ask where a vfolder lies."""
        return self.manager("GET", "/folder/mount", {"volume": "local", "vfid": vfid})

    def test_bare_spellings(self) -> None:
        """A bare id is taken in every form that Python takes a UUID in."""
        vfid, root = self.new_folder()
        plain = vfid.replace("-", "")
        for spelling in (plain, vfid.upper(), "{" + vfid + "}", "urn:uuid:" + vfid):
            self.assertEqual(self.mount(spelling).json(), {"path": str(root)}, spelling)

    def test_scope_type_is_not_in_the_path(self) -> None:
        """A folder is found by the scope's id, whatever kind of scope it is."""
        scope, folder = uuid4(), uuid4().hex
        params = {"volume": "local", "vfid": f"user:{scope}/{folder}"}
        self.assertEqual(self.manager("POST", "/folder/create", params).status, 204)
        root = self.path(f"user:{scope}/{folder}")
        self.assertEqual(self.mount(f"project:{scope}/{folder}").json(), {"path": str(root)})

    def test_layouts_side_by_side(self) -> None:
        """The same number is another folder in another layout."""
        folder = uuid4()
        bare, scoped = str(folder), f"user:{uuid4()}/{folder.hex}"
        for vfid in (bare, scoped):
            answer = self.manager("POST", "/folder/create", {"volume": "local", "vfid": vfid})
            self.assertEqual(answer.status, 204)
        self.assertTrue(self.path(bare).is_dir())
        self.assertTrue(self.path(scoped).is_dir())

    def test_no_id(self) -> None:
        """What is no id is refused by name."""
        bad = ("", "x", "../../../etc", f"{uuid4()}/..", f"user:nobody/{uuid4().hex}")
        more = (f"user:{uuid4()}/", f"user:{uuid4()}/x", f"/{uuid4().hex}", 7, None, ["a"])
        for vfid in (*bad, *more):
            content = self.assert_problem(self.mount(vfid), 400, "invalid-api-params")
            self.assertIn("vfid", content["data"], repr(vfid))


class Transport(WireTestCase):
    """Connections that are used more than once."""

    def keep(self) -> Connection:
        """A connection to the manager API."""
        return self.connect(self.daemon.manager_port)

    def test_kept_alive(self) -> None:
        """One connection serves fifty requests."""
        connection = self.keep()
        headers = {AUTH: MANAGER_SECRET}
        for _ in range(50):
            self.assertEqual(connection.request("GET", "/volumes", headers).status, 200)

    def test_kept_alive_after_errors(self) -> None:
        """A connection serves on after every kind of refusal."""
        connection = self.keep()
        headers = {AUTH: MANAGER_SECRET}
        hwinfo = "/volume/hwinfo"
        refused: tuple[tuple[str, str, dict[str, str], bytes | None, int], ...] = (
            ("GET", "/volumes", {}, None, 403),
            ("GET", "/nowhere", headers, None, 404),
            ("PUT", "/volumes", headers, None, 405),
            ("HEAD", "/volumes", headers, None, 405),
            ("GET", "/volumes", headers, b"{}", 400),
            ("GET", hwinfo, headers, b"{", 400),
            ("GET", hwinfo, headers, b"{}", 400),
            ("GET", hwinfo, headers, b'{"volume": "none"}', 400),
        )
        for method, path, fields, body, status in refused:
            self.assertEqual(connection.request(method, path, fields, body).status, status)
            self.assertEqual(connection.request("GET", "/volumes", headers).status, 200)

    def test_refused_with_a_body(self) -> None:
        """A connection serves on, or says that it ends, when a body is refused unread."""
        headers = {AUTH: MANAGER_SECRET}
        body = b'{"volume": "local"}'
        for method, path, fields, status in (
            ("POST", "/folder/create", {}, 403),
            ("POST", "/nowhere", headers, 404),
            ("PUT", "/volumes", headers, 405),
        ):
            connection = self.keep()
            answer = connection.request(method, path, fields, body)
            self.assertEqual(answer.status, status)
            if "close" in answer.words("Connection"):
                self.assertTrue(connection.closed())
            else:
                self.assertEqual(connection.request("GET", "/volumes", headers).status, 200)

    def test_kept_alive_after_204(self) -> None:
        """An answer without content leaves the connection in order."""
        connection = self.keep()
        headers = {AUTH: MANAGER_SECRET}
        for _ in range(3):
            body = json.dumps({"volume": "local", "vfid": str(uuid4())}).encode()
            answer = connection.request("POST", "/folder/create", headers, body)
            self.assertEqual(answer.status, 204)
            self.assertEqual(connection.request("GET", "/volumes", headers).status, 200)

    def test_no_content(self) -> None:
        """A 204 has neither a body nor a length."""
        params = {"volume": "local", "vfid": self.new_id()}
        answer = self.manager("POST", "/folder/create", params)
        self.assertEqual(answer.status, 204)
        self.assertIsNone(answer.header("Content-Length"))
        self.assertIsNone(answer.header("Transfer-Encoding"))

    def test_close(self) -> None:
        """A client that asks for it gets its connection closed after the answer."""
        connection = self.keep()
        headers = {AUTH: MANAGER_SECRET, "Connection": "close"}
        self.assertEqual(connection.request("GET", "/volumes", headers).status, 200)
        self.assertTrue(connection.closed())

    def test_pipelining(self) -> None:
        """Requests sent at once are answered in their order."""
        connection = self.keep()
        headers = {AUTH: MANAGER_SECRET}
        vfid = self.new_id()
        params = {"volume": "local", "vfid": vfid}
        body = json.dumps(params).encode()
        steps = (
            ("POST", "/folder/create", 204),
            ("POST", "/folder/create", 409),
            ("GET", "/folder/mount", 200),
            ("GET", "/folder/usage", 200),
            ("POST", "/folder/delete", 204),
            ("GET", "/folder/mount", 400),
        )
        connection.write(
            b"".join(request_head(m, path, headers, body) + body for m, path, _ in steps)
        )
        seen = [connection.receive().status for _ in steps]
        self.assertEqual(seen, [status for _, _, status in steps])

    def test_split_request(self) -> None:
        """A request may come in one byte at a time."""
        connection = self.keep()
        body = b'{"volume": "local"}'
        head = request_head("GET", "/volume/hwinfo", {AUTH: MANAGER_SECRET}, body)
        for byte in head + body:
            connection.write(bytes([byte]))
        self.assertEqual(connection.receive().status, 200)

    def test_garbage(self) -> None:
        """Bytes that are no HTTP hurt nobody else."""
        connection = self.keep()
        connection.write(b"\x16\x03\x01\x02\x00\x01\x00\r\n\r\n")
        self.assertTrue(connection.closed())
        self.alive()

    def test_two_lengths(self) -> None:
        """A request with two lengths is not guessed at."""
        connection = self.keep()
        connection.write(
            b"GET /volume/hwinfo HTTP/1.1\r\nHost: daemon\r\n"
            + f"{AUTH}: {MANAGER_SECRET}\r\n".encode()
            + b'Content-Length: 2\r\nContent-Length: 19\r\n\r\n{"volume": "local"}'
        )
        self.assertEqual(connection.receive().status, 400)
        self.assertTrue(connection.closed())

    def test_old_protocol(self) -> None:
        """A client that speaks HTTP/1.0 is answered, and its connection closed."""
        connection = self.keep()
        connection.write(f"GET /volumes HTTP/1.0\r\n{AUTH}: {MANAGER_SECRET}\r\n\r\n".encode())
        head, _, body = connection.reader.read().partition(b"\r\n\r\n")
        self.assertTrue(head.startswith(b"HTTP/1."), head)
        self.assertIn(b" 200 ", head.partition(b"\r\n")[0])
        self.assertIn("volumes", json.loads(body))

    def test_both_framings(self) -> None:
        """A request with a length and chunks is not guessed at."""
        connection = self.keep()
        connection.write(
            b"GET /volume/hwinfo HTTP/1.1\r\nHost: daemon\r\n"
            + f"{AUTH}: {MANAGER_SECRET}\r\n".encode()
            + b"Content-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n"
            + chunked(b'{"volume": "local"}')
            + request_head("GET", "/volumes", {AUTH: MANAGER_SECRET}, None)
        )
        self.assertEqual(connection.receive().status, 400)
        self.assertTrue(connection.closed())

    def test_volume_that_is_gone(self) -> None:
        """A volume whose directory is gone fails by itself, and the rest is answered."""
        volume = self.daemon.volumes["second"]
        away = volume.rename(volume.with_name("away"))
        try:
            for path in ("/", "/volumes", "/status"):
                self.assertEqual(self.manager("GET", path).status, 200, path)
            params = {"volume": "second", "vfid": self.new_id()}
            answer = self.manager("GET", "/folder/usage", params)
            self.assertNotIn(answer.status, (200, 500))
            self.assert_problem(answer, answer.status)
        finally:
            away.rename(volume)

    def test_client_leaves(self) -> None:
        """A client that leaves before its answer hurts nobody else."""
        vfid, root = self.new_folder()
        for number in range(200):
            (root / str(number)).touch()
        body = json.dumps({"volume": "local", "vfid": vfid, "relpath": "."}).encode()
        for _ in range(20):
            connection = Connection(self.daemon.manager_port)
            connection.send("POST", "/folder/file/list", {AUTH: MANAGER_SECRET}, body)
            connection.close()
        self.alive()

    def test_client_api_kept_alive(self) -> None:
        """The client API serves on after refusals too."""
        connection = self.connect(self.daemon.client_port)
        for _ in range(3):
            self.assertEqual(connection.request("GET", "/download?token=x").status, 400)
            self.assertEqual(connection.request("HEAD", "/upload?token=x").status, 400)
            self.assertEqual(connection.request("GET", "/nowhere").status, 404)
            self.assertEqual(connection.request("OPTIONS", "/upload").status, 200)

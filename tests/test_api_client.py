"""
Tests for :mod:`storageproxy.api.client`, in memory and over TCP and TLS.
"""

from __future__ import annotations

import hashlib
import os
from base64 import b64encode
from io import BytesIO
from pathlib import Path
from urllib.parse import parse_qs, urlsplit
from zipfile import ZipFile

import jwt
from twisted.trial.unittest import SynchronousTestCase

import storageproxy
from storageproxy.transfer.request import StreamingRequest
from tests.harness import (
    LIFETIME,
    MAX_UPLOAD,
    TOKEN_SECRET,
    Answer,
    APICase,
    MemoryCase,
    head,
    on_all_transports,
)

TUS = {"Tus-Resumable": "1.0.0"}


class ClientStatus(APICase):
    async def test_status(self) -> None:
        """Everybody may ask whether the daemon is there."""
        answer = await self.client("GET", "/")
        self.assertEqual(answer.status, 200)
        self.assertEqual(answer.headers["content-type"], "application/json; charset=utf-8")
        self.assertEqual(
            answer.json(),
            {
                "status": "ok",
                "type": "client-facing",
                "storage-proxy": storageproxy.__version__,
            },
        )

    async def test_unknown_path(self) -> None:
        """A path that is none is a 404 that pages can read."""
        answer = await self.client("GET", "/nowhere")
        self.assert_problem(answer, 404, "url-not-found")
        self.assertEqual(answer.headers["access-control-allow-origin"], "*")

    async def test_wrong_method(self) -> None:
        """A method that a path has not is a 405 that says which it has."""
        answer = await self.client("PUT", "/upload")
        self.assert_problem(answer, 405, "method-not-allowed")
        allowed = set(answer.headers["allow"].split(", "))
        self.assertEqual(allowed, {"OPTIONS", "HEAD", "PATCH", "POST", "DELETE"})


class UploadRoutes(APICase):
    async def test_options(self) -> None:
        """A client learns without a token what can be done here."""
        answer = await self.client("OPTIONS", "/upload")
        self.assertEqual(answer.status, 200)
        self.assertEqual(answer.headers["tus-resumable"], "1.0.0")
        self.assertEqual(answer.headers["tus-version"], "1.0.0")
        self.assertEqual(answer.headers["tus-max-size"], str(MAX_UPLOAD))
        self.assertEqual(
            set(answer.headers["tus-extension"].split(",")),
            {"creation", "expiration", "termination", "checksum"},
        )
        self.assertEqual(
            set(answer.headers["tus-checksum-algorithm"].split(",")),
            {"sha1", "sha256", "sha512", "md5", "crc32"},
        )
        self.assertEqual(answer.headers["x-content-type-options"], "nosniff")
        self.assertEqual(answer.headers["access-control-allow-origin"], "*")

    async def test_head(self) -> None:
        """A HEAD tells how far an upload is, with all headers that clients break without."""
        path = await self.upload_path("file", 6)
        answer = await self.client("HEAD", path, TUS)
        self.assertEqual(answer.status, 200)
        self.assertEqual(answer.headers["upload-offset"], "0")
        self.assertEqual(answer.headers["upload-length"], "6")
        self.assertEqual(answer.headers["cache-control"], "no-store")
        self.assertEqual(answer.headers["tus-resumable"], "1.0.0")
        # RFC 9110 date of the token's end.
        self.assertEqual(answer.headers["upload-expires"], "Wed, 15 Nov 2023 22:13:20 GMT")

    async def test_patch(self) -> None:
        """A file in two parts; each is a 204 with the new offset."""
        path = await self.upload_path("dir/file", 6)
        answer = await self.patch_at(path, 0, b"abc")
        self.assertEqual((answer.status, answer.headers["upload-offset"]), (204, "3"))
        self.assertIn("upload-expires", answer.headers)
        answer = await self.patch_at(path, 3, b"def")
        self.assertEqual((answer.status, answer.headers["upload-offset"]), (204, "6"))
        self.assertEqual((self.folder / "dir" / "file").read_bytes(), b"abcdef")
        answer = await self.client("HEAD", path, TUS)
        self.assertEqual((answer.status, answer.headers["upload-offset"]), (200, "6"))

    async def test_large_patch(self) -> None:
        """A body of several megabytes arrives as it was sent."""
        content = os.urandom(9 * 1024 * 1024 + 7)
        path = await self.upload_path("file", len(content))
        answer = await self.patch_at(path, 0, content)
        self.assertEqual(answer.status, 204)
        self.assertEqual((self.folder / "file").read_bytes(), content)

    async def test_tolerance(self) -> None:
        """Clients of the original send neither version nor type, and odd query keys."""
        path = await self.upload_path("file", 6, "&whatever=1")
        answer = await self.client("PATCH", path, {"Upload-Offset": "0"}, b"abc")
        self.assertEqual(answer.status, 204)
        headers = {"Upload-Offset": "3", "Content-Type": "application/octet-stream"}
        answer = await self.client("PATCH", path, headers, b"def")
        self.assertEqual(answer.status, 204)

    async def test_dst_dir(self) -> None:
        """An upload can go below a directory that the URL names."""
        path = await self.upload_path("file", 3, "&dst_dir=some/dir")
        answer = await self.patch_at(path, 0, b"abc")
        self.assertEqual(answer.status, 204)
        self.assertEqual((self.folder / "some" / "dir" / "file").read_bytes(), b"abc")

    async def test_dst_dir_outside(self) -> None:
        """FIX 1: a directory that the URL names cannot lead out of the vfolder."""
        path = await self.upload_path("file", 3, "&dst_dir=../../..")
        self.assertEqual((await self.patch_at(path, 0, b"abc")).status, 400)
        for place in (self.folder.parent, self.folder.parent.parent, self.proxy.root):
            self.assertFalse((place / "file").exists())

    async def test_creation(self) -> None:
        """A plain tus client that only knows an endpoint is told where its session is."""
        path = await self.upload_path("file", 3)
        answer = await self.client("POST", path, {**TUS, "Upload-Length": "3"})
        self.assertEqual(answer.status, 201)
        location = urlsplit(answer.headers["location"])
        self.assertEqual((location.netloc, location.path), ("", "upload"))
        self.assertEqual(parse_qs(location.query), parse_qs(urlsplit(path).query))
        self.assertIn("upload-expires", answer.headers)
        answer = await self.patch_at("/" + answer.headers["location"], 0, b"abc")
        self.assertEqual(answer.status, 204)

    async def test_creation_keeps_dst_dir(self) -> None:
        """The place that creation tells goes to the same target."""
        path = await self.upload_path("file", 3, "&dst_dir=a%20dir")
        answer = await self.client("POST", path, {**TUS, "Upload-Length": "3"})
        await self.patch_at("/" + answer.headers["location"], 0, b"abc")
        self.assertEqual((self.folder / "a dir" / "file").read_bytes(), b"abc")

    async def test_creation_of_another_length(self) -> None:
        """A client that announces another length than its token is told so."""
        path = await self.upload_path("file", 3)
        for headers in ({"Upload-Length": "4"}, {}, {"Upload-Length": "x"}):
            answer = await self.client("POST", path, {**TUS, **headers})
            self.assert_problem(answer, 400, "invalid-api-params")

    async def test_termination(self) -> None:
        """An upload can be given up, and is gone then."""
        path = await self.upload_path("file", 6)
        await self.patch_at(path, 0, b"abc")
        answer = await self.client("DELETE", path, TUS)
        self.assertEqual(answer.status, 204)
        answer = await self.client("HEAD", path, TUS)
        self.assertEqual(answer.status, 404)
        answer = await self.client("DELETE", path, TUS)
        self.assert_problem(answer, 404, "no-such-upload-session")
        self.assertEqual(list(self.folder.iterdir()), [])

    async def test_method_override(self) -> None:
        """Clients behind proxies that know only POST can do everything."""
        path = await self.upload_path("file", 3)

        async def post(method: str, headers: dict[str, str], body: bytes | None = None) -> Answer:
            sent = {**TUS, "X-HTTP-Method-Override": method, **headers}
            return await self.client("POST", path, sent, body)

        answer = await post("PATCH", {"Upload-Offset": "0"}, b"abc")
        self.assertEqual((answer.status, answer.headers["upload-offset"]), (204, "3"))
        answer = await post("HEAD", {})
        self.assertEqual((answer.status, answer.headers["upload-offset"]), (200, "3"))
        self.assertEqual((await post("DELETE", {})).status, 404)
        self.assert_problem(await post("GET", {}), 405, "method-not-allowed")

    async def test_checksum(self) -> None:
        """Every algorithm that is offered is taken, and a wrong sum is a 460."""
        path = await self.upload_path("file", 100)
        algorithms = {
            "sha1": hashlib.sha1(b"abc").digest(),
            "sha256": hashlib.sha256(b"abc").digest(),
            "sha512": hashlib.sha512(b"abc").digest(),
            "md5": hashlib.md5(b"abc").digest(),
            "crc32": bytes.fromhex("352441c2"),
        }
        offset = 0
        for name, digest in algorithms.items():
            header = {"Upload-Checksum": f"{name} {b64encode(digest).decode()}"}
            answer = await self.patch_at(path, offset, b"xyz", header)
            self.assert_problem(answer, 460, "checksum-mismatch")
            answer = await self.patch_at(path, offset, b"abc", header)
            self.assertEqual((answer.status, name), (204, name))
            offset += 3
        answer = await self.patch_at(path, offset, b"abc", {"Upload-Checksum": "sha3 AAAA"})
        self.assert_problem(answer, 400, "invalid-api-params")

    async def test_offset_errors(self) -> None:
        """FIX 2: a wrong offset is a 409 with the right one, a missing or odd one a 400."""
        path = await self.upload_path("file", 6)
        await self.patch_at(path, 0, b"abc")
        answer = await self.patch_at(path, 1, b"x")
        self.assert_problem(answer, 409, "upload-offset-mismatch")
        self.assertEqual(answer.headers["upload-offset"], "3")
        answer = await self.client("PATCH", path, TUS, b"x")
        self.assert_problem(answer, 400, "invalid-api-params")
        for odd in ("-1", "x", "3.0", ""):
            answer = await self.client("PATCH", path, {**TUS, "Upload-Offset": odd}, b"x")
            self.assert_problem(answer, 400, "invalid-api-params")
        answer = await self.client("HEAD", path, TUS)
        self.assertEqual(answer.headers["upload-offset"], "3")

    async def test_content_type(self) -> None:
        """A PATCH of another type is a 415."""
        path = await self.upload_path("file", 6)
        answer = await self.patch_at(path, 0, b"abc", {"Content-Type": "text/plain"})
        self.assert_problem(answer, 415, "unsupported-media-type")

    async def test_version(self) -> None:
        """Another version of tus is a 412 that says which is spoken."""
        path = await self.upload_path("file", 6)
        for method in ("PATCH", "POST", "DELETE"):
            answer = await self.client(
                method, path, {"Tus-Resumable": "0.2.2", "Upload-Offset": "0"}, b"abc"
            )
            self.assert_problem(answer, 412, "unsupported-tus-version")
            self.assertEqual(answer.headers["tus-version"], "1.0.0")
            self.assertEqual(answer.headers["tus-resumable"], "1.0.0")
        answer = await self.client("HEAD", path, {"Tus-Resumable": "0.2.2"})
        self.assertEqual(answer.status, 412)

    async def test_too_long(self) -> None:
        """FIX 3: more bytes than announced are a 413, and change nothing."""
        path = await self.upload_path("file", 3)
        self.assert_problem(await self.patch_at(path, 0, b"abcd"), 413, "upload-too-large")
        self.assertEqual((await self.patch_at(path, 0, b"abc")).status, 204)

    async def test_token_beyond_the_limit(self) -> None:
        """FIX 3: a token of another node for a larger file than is taken here is a 413."""
        token = self.proxy.sign(
            op="upload",
            volume="local",
            vfid=self.vfid,
            relpath="x",
            size=MAX_UPLOAD + 1,
            session="0" * 32,
        )
        answer = await self.patch_at(f"/upload?token={token}", 0, b"abc")
        self.assert_problem(answer, 413, "upload-too-large")

    async def test_empty_file(self) -> None:
        """FIX 5: an empty file is there as soon as its token is, and a HEAD says 0 of 0."""
        path = await self.upload_path("dir/empty", 0)
        self.assertEqual((self.folder / "dir" / "empty").read_bytes(), b"")
        answer = await self.client("HEAD", path, TUS)
        self.assertEqual(answer.status, 200)
        self.assertEqual(answer.headers["upload-offset"], "0")
        self.assertEqual(answer.headers["upload-length"], "0")

    async def test_unknown_session(self) -> None:
        """A session that never was is a 404 for every method."""
        token = self.proxy.sign(
            op="upload", volume="local", vfid=self.vfid, relpath="x", size=3, session="0" * 32
        )
        path = f"/upload?token={token}"
        for method in ("PATCH", "POST", "DELETE"):
            headers = {**TUS, "Upload-Offset": "0", "Upload-Length": "3"}
            answer = await self.client(method, path, headers)
            self.assert_problem(answer, 404, "no-such-upload-session")
        self.assertEqual((await self.client("HEAD", path, TUS)).status, 404)

    async def test_folder_deleted(self) -> None:
        """An upload into a vfolder that was deleted meanwhile is a 404."""
        path = await self.upload_path("x", 3)
        await self.rpc("POST", "/folder/delete")
        self.assert_problem(await self.patch_at(path, 0, b"abc"), 404, "vfolder/not-found")

    async def test_scoped_id(self) -> None:
        """Tokens with ids of both dialects lead to their own places on disk."""
        scope = "12345678-1234-1234-1234-123456789abc"
        self.vfid = f"user:{scope}/{'ab' * 16}"
        await self.rpc("POST", "/folder/create")
        path = await self.upload_path("file", 3)
        await self.patch_at(path, 0, b"abc")
        place = Path(self.proxy.volume["local"].path, scope.replace("-", ""), "ab", "ab", "ab" * 14)
        self.assertEqual((place / "file").read_bytes(), b"abc")


class TokenErrors(APICase):
    def claims(self, **changes: object) -> dict[str, object]:
        claims: dict[str, object] = {
            "op": "download",
            "volume": "local",
            "vfid": self.vfid,
            "relpath": "file",
            "exp": int(self.proxy.now + LIFETIME),
        }
        claims.update(changes)
        return {name: value for name, value in claims.items() if value is not None}

    async def refused(self, token: str, path: str = "/download") -> str:
        answer = await self.client("GET", f"{path}?token={token}")
        problem = self.assert_problem(answer, 400, "invalid-api-params")
        return str(problem["data"]["token"])

    async def test_missing(self) -> None:
        """A request without a token is a 400 that names it."""
        answer = await self.client("GET", "/download")
        problem = self.assert_problem(answer, 400, "invalid-api-params")
        self.assertIn("token", problem["data"])
        answer = await self.client("PATCH", "/upload", {"Upload-Offset": "0"}, b"abc")
        self.assert_problem(answer, 400, "invalid-api-params")

    async def test_forged(self) -> None:
        """A token that somebody else has signed, or nobody, is a 400, as clients know it."""
        forged = jwt.encode(self.claims(), "another secret" * 4, algorithm="HS256")
        for token in (
            forged,
            jwt.encode(self.claims(), "", algorithm="none"),
            jwt.encode(self.claims(), TOKEN_SECRET, algorithm="HS512"),
            "x.y.z",
            "",
            "%00",
        ):
            self.assertIn("cannot decode", await self.refused(token))

    async def test_expired(self) -> None:
        """A token is good until its time is over."""
        token = jwt.encode(self.claims(), TOKEN_SECRET, algorithm="HS256")
        self.proxy.now += LIFETIME
        self.assertIn("expired", await self.refused(token))

    async def test_endless(self) -> None:
        """FIX 27: a token without an end is not taken."""
        token = jwt.encode(self.claims(exp=None), TOKEN_SECRET, algorithm="HS256")
        self.assertIn("exp", await self.refused(token))

    async def test_for_something_else(self) -> None:
        """A token for a download is none for an upload, nor the other way round."""
        token = jwt.encode(self.claims(op="upload"), TOKEN_SECRET, algorithm="HS256")
        await self.refused(token)
        token = jwt.encode(self.claims(size=1, session="x"), TOKEN_SECRET, algorithm="HS256")
        answer = await self.client("PATCH", f"/upload?token={token}", {"Upload-Offset": "0"}, b"a")
        self.assert_problem(answer, 400, "invalid-api-params")

    async def test_unknown_claims(self) -> None:
        """Claims that later nodes add are no mistake."""
        (self.folder / "file").write_bytes(b"content")
        token = jwt.encode(self.claims(later="x"), TOKEN_SECRET, algorithm="HS256")
        self.assertEqual((await self.client("GET", f"/download?token={token}")).body, b"content")

    async def test_session_is_no_path(self) -> None:
        """A token whose session is a path is not taken, whoever has signed it."""
        token = self.proxy.sign(
            op="upload", volume="local", vfid=self.vfid, relpath="x", size=3, session="../x"
        )
        answer = await self.client("PATCH", f"/upload?token={token}", {"Upload-Offset": "0"}, b"a")
        self.assert_problem(answer, 400, "invalid-api-params")

    async def test_unknown_volume(self) -> None:
        """A token for a volume that this node has not is a 400."""
        token = jwt.encode(self.claims(volume="elsewhere"), TOKEN_SECRET, algorithm="HS256")
        answer = await self.client("GET", f"/download?token={token}")
        self.assert_problem(answer, 400, "volume/invalid")

    async def test_query_is_no_utf8(self) -> None:
        """A query that cannot be read is a 400."""
        answer = await self.client("GET", "/download?token=%ff")
        self.assert_problem(answer, 400, "malformed-request")


class Origins(APICase):
    def assert_open(self, answer: Answer, origin: str | None = None) -> None:
        self.assertEqual(answer.headers["access-control-allow-origin"], origin or "*")
        exposed = {
            name.strip().lower()
            for name in answer.headers["access-control-expose-headers"].split(",")
        }
        needed = "upload-offset upload-length location tus-resumable content-disposition"
        self.assertLessEqual(
            {*needed.split(), "content-range", "content-length", "upload-expires"}, exposed
        )
        self.assertEqual(answer.headers.get("access-control-allow-credentials"), origin and "true")
        if origin is not None:
            self.assertEqual(answer.headers["vary"], "Origin")

    async def test_all_answers(self) -> None:
        """FIX 8: pages of any origin can read every answer, errors too."""
        (self.folder / "file").write_bytes(b"content")
        path = await self.upload_path("new", 6)
        good = self.proxy.download_path(self.vfid, "file")
        for origin in (None, "https://a.page"):
            headers = {"Origin": origin} if origin else {}
            for method, url, more in (
                ("OPTIONS", "/upload", {}),
                ("HEAD", path, TUS),
                ("PATCH", path, {"Upload-Offset": "0"}),
                ("PATCH", path, {"Upload-Offset": "9"}),
                ("PATCH", path, {"Tus-Resumable": "9"}),
                ("PATCH", "/upload?token=x", {"Upload-Offset": "0"}),
                ("PUT", "/upload", {}),
                ("OPTIONS", "/download", {}),
                ("GET", good, {}),
                ("HEAD", good, {}),
                ("GET", good, {"Range": "bytes=0-1"}),
                ("GET", good, {"Range": "bytes=100-"}),
                ("GET", good, {"If-None-Match": "*"}),
                ("GET", "/download?token=x", {}),
                ("GET", self.proxy.download_path(self.vfid, "missing"), {}),
                ("GET", "/", {}),
                ("GET", "/nowhere", {}),
            ):
                answer = await self.client(method, url, {**headers, **more})
                self.assert_open(answer, origin)

    async def test_preflight(self) -> None:
        """A page that sends headers of its own is allowed those that it asks for."""
        headers = {
            "Origin": "https://a.page",
            "Access-Control-Request-Method": "PATCH",
            "Access-Control-Request-Headers": "x-own, upload-offset",
        }
        for path in ("/upload", "/download"):
            answer = await self.client("OPTIONS", path, headers)
            self.assertEqual(answer.status, 200)
            self.assertEqual(answer.headers["access-control-allow-headers"], "x-own, upload-offset")
            self.assertIn("PATCH", answer.headers["access-control-allow-methods"])

    async def test_preflight_without_a_wish(self) -> None:
        """A page is allowed what tus needs without asking for it."""
        answer = await self.client("OPTIONS", "/upload", {"Origin": "https://a.page"})
        self.assertIn("Upload-Offset", answer.headers["access-control-allow-headers"])


class DownloadRoutes(APICase):
    content = b"0123456789"

    def begin(self) -> None:
        super().begin()
        path = self.folder / "file"
        path.write_bytes(self.content)
        # A time with a fraction, as most files have.
        os.utime(path, ns=(0, 1_600_000_000_500_000_000))

    async def get(self, relpath: str = "file", query: str = "", **headers: str) -> Answer:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        path = self.proxy.download_path(self.vfid, relpath, query)
        return await self.client("GET", path, named)

    async def test_get(self) -> None:
        """A file comes with all headers that clients break without."""
        answer = await self.get()
        self.assertEqual((answer.status, answer.body), (200, self.content))
        self.assertEqual(answer.headers["content-length"], "10")
        # Rounded up, so that no change hides in the fraction.
        self.assertEqual(answer.headers["last-modified"], "Sun, 13 Sep 2020 12:26:41 GMT")
        self.assertEqual(answer.headers["etag"], f'"{1_600_000_000_500_000_000:x}-a"')
        self.assertEqual(answer.headers["accept-ranges"], "bytes")
        self.assertEqual(answer.headers["content-type"], "application/octet-stream")
        self.assertTrue(answer.headers["content-disposition"].startswith("attachment;filename="))
        self.assertEqual(answer.headers["x-content-type-options"], "nosniff")
        self.assertNotIn("cache-control", answer.headers)

    async def test_token_of_a_manager(self) -> None:
        """The token that a manager gets is good for a download."""
        answer = await self.rpc("POST", "/folder/file/download", relpath="file")
        answer = await self.client("GET", f"/download?token={answer.json()['token']}")
        self.assertEqual(answer.body, self.content)

    async def test_head(self) -> None:
        """FIX 15: HEAD is a GET without the file."""
        for_get = await self.get()
        answer = await self.client("HEAD", self.proxy.download_path(self.vfid, "file"))
        self.assertEqual((answer.status, answer.body), (200, b""))
        for name in ("content-length", "etag", "last-modified", "content-disposition"):
            self.assertEqual(answer.headers[name], for_get.headers[name])

    async def test_no_cache(self) -> None:
        """A download that shall not be kept says so."""
        answer = await self.get(query="&no_cache=true")
        self.assertEqual(answer.headers["cache-control"], "no-store")

    async def test_dst_dir(self) -> None:
        """A download can come from below a directory that the URL names."""
        (self.folder / "dir").mkdir()
        (self.folder / "dir" / "file").write_bytes(b"other")
        self.assertEqual((await self.get(query="&dst_dir=dir")).body, b"other")

    async def test_range(self) -> None:
        """A range is a 206."""
        answer = await self.get(Range="bytes=2-4")
        self.assertEqual((answer.status, answer.body), (206, b"234"))
        self.assertEqual(answer.headers["content-range"], "bytes 2-4/10")

    async def test_ranges(self) -> None:
        """Several ranges are one answer."""
        answer = await self.get(Range="bytes=0-1,8-9")
        self.assertEqual(answer.status, 206)
        self.assertTrue(answer.headers["content-type"].startswith("multipart/byteranges"))
        self.assertIn(b"\r\n\r\n01\r\n", answer.body)

    async def test_range_beyond(self) -> None:
        """A download that is complete already is a 416 with the length."""
        answer = await self.get(Range="bytes=10-")
        self.assert_problem(answer, 416, "range-not-satisfiable")
        self.assertEqual(answer.headers["content-range"], "bytes */10")

    async def test_if_range(self) -> None:
        """FIX 14: a download that goes on is not spliced with a file that has changed."""
        first = await self.get()
        for name in ("etag", "last-modified"):
            held = await self.get(Range="bytes=5-", If_Range=first.headers[name])
            self.assertEqual((held.status, held.body), (206, b"56789"))
        (self.folder / "file").write_bytes(b"changed!!!")
        for name in ("etag", "last-modified"):
            changed = await self.get(Range="bytes=5-", If_Range=first.headers[name])
            self.assertEqual((changed.status, changed.body), (200, b"changed!!!"))

    async def test_conditions(self) -> None:
        """The four other conditional headers do what RFC 9110 says."""
        first = await self.get()
        etag, modified = first.headers["etag"], first.headers["last-modified"]
        before, after = "Sun, 13 Sep 2020 12:26:40 GMT", "Mon, 14 Sep 2020 12:26:41 GMT"
        for headers, status in (
            ({"If_None_Match": etag}, 304),
            ({"If_None_Match": "*"}, 304),
            ({"If_None_Match": f'"other", {etag}'}, 304),
            ({"If_None_Match": '"other"'}, 200),
            ({"If_Match": etag}, 200),
            ({"If_Match": '"other"'}, 412),
            ({"If_Modified_Since": modified}, 304),
            ({"If_Modified_Since": before}, 200),
            ({"If_Unmodified_Since": after}, 200),
            ({"If_Unmodified_Since": before}, 412),
            # A tag counts more than a time.
            ({"If_None_Match": '"other"', "If_Modified_Since": after}, 200),
            ({"If_Match": etag, "If_Unmodified_Since": before}, 200),
            # Conditions come before ranges.
            ({"If_None_Match": etag, "Range": "bytes=100-"}, 304),
            ({"If_Match": '"other"', "Range": "bytes=0-1"}, 412),
        ):
            answer = await self.get(**headers)
            self.assertEqual((headers, answer.status), (headers, status))
            if status == 304:
                self.assertEqual(answer.headers["etag"], etag)
            if status == 412:
                self.assert_problem(answer, 412, "precondition-failed")

    async def test_archive(self) -> None:
        """A directory comes as a zip with a length, when it is asked for as one."""
        (self.folder / "dir").mkdir()
        (self.folder / "dir" / "a").write_bytes(b"a")
        answer = await self.get("dir", "&archive=true")
        self.assertEqual(answer.headers["content-type"], "application/zip")
        self.assertEqual(int(answer.headers["content-length"]), len(answer.body))
        self.assertEqual(ZipFile(BytesIO(answer.body)).namelist(), ["a"])
        answer = await self.get("dir", "&archive=false")
        self.assert_problem(answer, 400, "not-a-regular-file")

    async def test_archive_claim(self) -> None:
        """A token of the original can say that a directory comes as a zip."""
        (self.folder / "dir").mkdir()
        path = self.proxy.download_path(self.vfid, "dir", archive=True)
        answer = await self.client("GET", path)
        self.assertEqual(answer.headers["content-type"], "application/zip")

    async def test_odd_flag(self) -> None:
        """A flag that is none is a 400 that names it."""
        answer = await self.get(query="&archive=perhaps")
        problem = self.assert_problem(answer, 400, "invalid-api-params")
        self.assertIn("archive", problem["data"])

    async def test_missing(self) -> None:
        """What is not there is a 404, whatever is not there."""
        for relpath in ("missing", "missing/file", "file/below"):
            self.assert_problem(await self.get(relpath), 404, "file-not-found")
        path = self.proxy.download_path("0" * 32, "file")
        self.assert_problem(await self.client("GET", path), 404, "file-not-found")

    async def test_outside(self) -> None:
        """FIX 16: neither dots nor links lead out of the vfolder."""
        (self.folder.parent / "secret").write_bytes(b"secret")
        (self.folder / "link").symlink_to("../secret")
        (self.folder / "up").symlink_to("..")
        (self.folder / "root").symlink_to("/")
        for relpath in ("../secret", "link", "up/secret", "root/etc/passwd", "../../../x"):
            self.assert_problem(await self.get(relpath), 404, "file-not-found")

    async def test_link_inside(self) -> None:
        """A link to a file of the vfolder is that file."""
        (self.folder / "link").symlink_to("file")
        self.assertEqual((await self.get("link")).body, self.content)

    async def test_special_files(self) -> None:
        """A FIFO hangs nobody."""
        os.mkfifo(self.folder / "fifo")
        self.assert_problem(await self.get("fifo"), 400, "not-a-regular-file")

    async def test_gzip_sibling(self) -> None:
        """FIX 13: a compressed file beside the one asked for is never sent in its place."""
        (self.folder / "file.gz").write_bytes(b"compressed")
        answer = await self.get(Accept_Encoding="gzip")
        self.assertEqual(answer.body, self.content)
        self.assertNotIn("content-encoding", answer.headers)

    async def test_odd_names(self) -> None:
        """FIX: a name with a newline adds no header, and comes through."""
        name = 'a\r\nX-Evil: 1\r\n\r\n"é'
        (self.folder / name).write_bytes(b"odd")
        answer = await self.get(name)
        self.assertEqual(answer.body, b"odd")
        self.assertNotIn("x-evil", answer.headers)
        self.assertIn("%0D%0AX-Evil", answer.headers["content-disposition"])

    async def test_unmanaged_path(self) -> None:
        """A token of the original can name a directory of the volume instead of a vfolder."""
        volume = Path(self.proxy.volume["local"].path)
        (volume / "raw").mkdir()
        (volume / "raw" / "x").write_bytes(b"raw")
        path = self.proxy.download_path(self.vfid, "x", unmanaged_path=str(volume / "raw"))
        self.assertEqual((await self.client("GET", path)).body, b"raw")

    async def test_unmanaged_path_outside(self) -> None:
        """FIX 16: such a directory has to be on the volume."""
        for outside in ("/etc", str(self.proxy.root), f"{self.proxy.volume['local'].path}/../.."):
            path = self.proxy.download_path(self.vfid, "passwd", unmanaged_path=outside)
            self.assert_problem(await self.client("GET", path), 404, "file-not-found")

    async def test_large(self) -> None:
        """A file of several megabytes arrives as it is."""
        content = os.urandom(5 * 1024 * 1024 + 3)
        (self.folder / "large").write_bytes(content)
        self.assertEqual((await self.get("large")).body, content)


for _mixin in (ClientStatus, UploadRoutes, TokenErrors, Origins, DownloadRoutes):
    globals().update(on_all_transports(_mixin))
    # What has no transport is no test case.
    del globals()[_mixin.__name__]
del _mixin


class StalledTests(MemoryCase):
    def test_stalled_clients_hold_nobody_up(self) -> None:
        """FIX 12: any number of clients that stall cost the next one nothing."""
        self.put("dir/file", bytes(8 * 1024 * 1024))
        stalled = []
        for query in ("", "&archive=true") * 20:
            wire = self.proxy.connect()
            self.addCleanup(wire.disconnect)
            self.threads.held = True
            relpath = "dir" if query else "dir/file"
            wire.request("GET", self.proxy.download_path(self.vfid, relpath, query))
            self.threads.step()
            self.threads.step()
            assert wire.producer is not None
            wire.producer.pauseProducing()
            self.threads.step()
            stalled.append(wire)
        self.assertEqual(self.threads.calls, [])
        self.threads.held = False
        wire = self.proxy.connect()
        wire.request("GET", self.proxy.download_path(self.vfid, "dir/file"))
        self.assertEqual(len(wire.answers()[0].body), 8 * 1024 * 1024)
        self.assertFalse(any(other.closed for other in stalled))


class RefusalTests(MemoryCase):
    def test_no_continue_for_a_bad_token(self) -> None:
        """A client that may not upload is told so before it sends a byte."""
        wire = self.proxy.connect()
        wire.send(head("PATCH", "/upload?token=x", {"Expect": "100-continue"}, None, 10**9))
        [answer] = wire.answers()
        self.assertEqual(answer.status, 400)
        self.assertEqual(answer.headers["connection"].lower(), "close")

    def test_nothing_is_read_for_a_bad_token(self) -> None:
        """The body of a client that may not upload reaches no disk."""
        received: list[StreamingRequest] = []
        self.patch(StreamingRequest, "deliver_body", lambda *args: received.append(args[0]))
        wire = self.proxy.connect()
        wire.send(head("PATCH", "/upload?token=x", {"Upload-Offset": "0"}, None, 3) + b"abc")
        self.assertEqual(wire.answers()[0].status, 400)
        self.assertEqual(received, [])


class ModuleTests(SynchronousTestCase):
    def test_every_route_is_known(self) -> None:
        """There are no routes but those that these tests know."""
        from storageproxy.api.client import ClientAPI

        routes = {
            (rule.rule, method)
            for rule in ClientAPI.app.url_map.iter_rules()
            for method in rule.methods or ()
        }
        self.assertEqual(
            routes,
            {("/", "GET"), ("/", "HEAD")}
            | {("/upload", m) for m in ("OPTIONS", "HEAD", "PATCH", "POST", "DELETE")}
            | {("/download", m) for m in ("OPTIONS", "GET", "HEAD")},
        )

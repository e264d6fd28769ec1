"""
The tokens of the client API, as this daemon and its upstream relatives make them.
"""

from __future__ import annotations

import base64
import json
import time
from typing import Any
from uuid import uuid4

from tests.functional.daemon import MANAGER_SECRET, TOKEN_SECRET
from tests.functional.http11 import Answer, OnFolder, dialects


class Tokens(OnFolder):
    """Who may download and upload what."""

    def setUp(self) -> None:
        """Have a file to download."""
        super().setUp()
        (self.root / "file").write_bytes(b"content")

    def download(self, token: str) -> Answer:
        """Download with a token."""
        return self.client("GET", f"/download?token={token}")

    def head_upload(self, token: str) -> Answer:
        """Ask for the state of an upload with a token."""
        return self.client("HEAD", f"/upload?token={token}", {"Tus-Resumable": "1.0.0"})

    def refused(self, token: str) -> Any:
        """Check that a token is refused for a download, as a wrong parameter."""
        content = self.assert_problem(self.download(token), 400, "invalid-api-params")
        self.assertIsInstance(content["data"], dict)
        self.assertIn("token", content["data"])
        return content

    def ours(self, **more: Any) -> dict[str, Any]:
        """The claims of a token that an upstream proxy makes for the file."""
        return {**self.claims("download", self.vfid, "file"), **more}

    def test_own(self) -> None:
        """A token of this daemon opens the file."""
        token = self.post("/folder/file/download", relpath="file").json()["token"]
        answer = self.download(token)
        self.assertEqual((answer.status, answer.body), (200, b"content"))

    def test_upstream(self) -> None:
        """A token of an upstream proxy with the same secret opens the file."""
        self.assertEqual(self.download(self.sign(self.ours())).body, b"content")

    def test_upstream_archive(self) -> None:
        """The claims that other releases add do not matter."""
        claims = self.ours(archive=False, unmanaged_path=None, iat=int(time.time()), x=[1])
        self.assertEqual(self.download(self.sign(claims)).body, b"content")

    def test_upload_of_upstream(self) -> None:
        """An upload that an upstream proxy has begun goes on here."""
        session = uuid4().hex
        (self.root / ".upload").mkdir()
        (self.root / ".upload" / session).write_bytes(b"abc")
        claims = self.claims("upload", self.vfid, "d/new", size=6, session=session)
        token = self.sign(claims)
        answer = self.head_upload(token)
        self.assertEqual((answer.status, answer.header("Upload-Offset")), (200, "3"))
        headers = {"Upload-Offset": "3", "Tus-Resumable": "1.0.0"}
        answer = self.client("PATCH", f"/upload?token={token}", headers, b"def")
        self.assertEqual((answer.status, answer.header("Upload-Offset")), (204, "6"))
        self.assertEqual((self.root / "d" / "new").read_bytes(), b"abcdef")
        self.assertFalse((self.root / ".upload").exists())

    def test_none(self) -> None:
        """Without a token nothing is opened."""
        for target in ("/download", "/download?archive=true", "/download?token="):
            content = self.assert_problem(self.client("GET", target), 400, "invalid-api-params")
            self.assertIn("token", content["data"])

    def test_garbage(self) -> None:
        """What is no token is refused."""
        for token in ("x", "a.b.c", "...", "e30.e30.e30", "x" * 5000):
            self.refused(token)
        self.assert_problem(self.download("%FF%FE"), 400)

    def test_unsigned(self) -> None:
        """A token that claims to need no signature is refused."""
        words = [{"alg": "none", "typ": "JWT"}, self.ours()]
        parts = [base64.urlsafe_b64encode(json.dumps(w).encode()).rstrip(b"=") for w in words]
        self.refused(b".".join([*parts, b""]).decode())
        signature = self.sign(self.ours()).rpartition(".")[2]
        self.refused(b".".join([*parts, signature.encode()]).decode())

    def test_other_key(self) -> None:
        """A token with the signature of another key is refused."""
        self.refused(self.sign(self.ours(), key=TOKEN_SECRET + "x"))

    def test_manager_secret(self) -> None:
        """The secret of the manager API signs no tokens."""
        self.refused(self.sign(self.ours(), key="manager-secret-of-the-tests-padded"))

    def test_other_algorithm(self) -> None:
        """A token with the same key and another algorithm is refused."""
        self.refused(self.sign(self.ours(), key=TOKEN_SECRET, alg="HS512"))

    def test_changed(self) -> None:
        """A token whose claims were changed is refused."""
        head, _, signature = self.sign(self.ours()).split(".")
        words = json.dumps(self.ours(relpath="other")).encode()
        body = base64.urlsafe_b64encode(words).rstrip(b"=").decode()
        self.refused(f"{head}.{body}.{signature}")

    def test_expired(self) -> None:
        """A token is refused after its time."""
        self.refused(self.sign(self.ours(exp=int(time.time()) - 60)))

    def test_no_expiry(self) -> None:
        """A token that would hold for ever is refused."""
        claims = self.ours()
        del claims["exp"]
        self.refused(self.sign(claims))

    def test_other_operation(self) -> None:
        """A token for an upload opens no download."""
        token = self.post("/folder/file/upload", relpath="file", size=7).json()["token"]
        self.refused(token)

    def test_unknown_operation(self) -> None:
        """A token for something else opens no download."""
        self.refused(self.sign(self.ours(op="delete")))

    def test_download_token_for_an_upload(self) -> None:
        """A token for a download opens no upload."""
        token = self.sign(self.ours(size=7, session=uuid4().hex))
        for method in ("HEAD", "PATCH", "DELETE", "POST"):
            answer = self.client(method, f"/upload?token={token}", {"Upload-Offset": "0"})
            self.assertEqual(answer.status, 400, method)

    def test_missing_claims(self) -> None:
        """A token that lacks a claim is refused."""
        for name in ("op", "volume", "vfid", "relpath"):
            claims = self.ours()
            del claims[name]
            self.refused(self.sign(claims))

    def test_missing_claims_of_an_upload(self) -> None:
        """An upload token that lacks its size or session is refused."""
        whole = self.claims("upload", self.vfid, "new", size=7, session=uuid4().hex)
        for name in ("size", "session", "relpath", "exp"):
            claims = {key: value for key, value in whole.items() if key != name}
            self.assertEqual(self.head_upload(self.sign(claims)).status, 400, name)

    def test_no_id(self) -> None:
        """A token for what is no vfolder is refused."""
        for vfid in ("../..", "", "x", 7, None):
            self.refused(self.sign(self.ours(vfid=vfid)))

    def test_unknown_volume(self) -> None:
        """A token for a volume that this proxy does not have is refused."""
        answer = self.download(self.sign(self.ours(volume="elsewhere")))
        self.assert_problem(answer, 400)

    def test_session_that_is_a_path(self) -> None:
        """The session of a token is never taken as a path."""
        (self.root / "victim").write_bytes(b"abc")
        for session in ("../victim", "../../x", "x/../../victim", ".", "..", ""):
            claims = self.claims("upload", self.vfid, "new", size=6, session=session)
            target = f"/upload?token={self.sign(claims)}"
            for method in ("HEAD", "PATCH", "DELETE"):
                headers = {"Upload-Offset": "0" if method == "DELETE" else "3"}
                answer = self.client(method, target, headers, b"def")
                self.assertIn(answer.status, (400, 404), f"{method} {session}")
        self.assertEqual((self.root / "victim").read_bytes(), b"abc")
        self.assertFalse((self.root / "new").exists())
        self.assert_untouched()

    def test_path_out_of_the_folder(self) -> None:
        """A token for a path out of the folder opens nothing there."""
        for relpath in (*self.escapes(), "/etc/passwd", str(self.outside / "secret.txt")):
            answer = self.download(self.sign(self.ours(relpath=relpath)))
            self.assertNotIn(b"not yours", answer.body)
            self.assertIn(answer.status, (400, 404), relpath)

    def test_errors_do_not_tell_secrets(self) -> None:
        """An error says nothing of the key."""
        answer = self.download(self.sign(self.ours(), key=TOKEN_SECRET + "x"))
        self.assertNotIn(TOKEN_SECRET.encode(), answer.body)

    def test_log(self) -> None:
        """Neither tokens nor secrets are in the log of the daemon, whatever happens."""
        good = self.sign(self.ours())
        bad = self.sign(self.ours(), key=TOKEN_SECRET + "x")
        upload = self.post("/folder/file/upload", relpath="new", size=7).json()["token"]
        headers = {"Upload-Offset": "0"}
        for token in (good, bad):
            self.download(token)
            self.client("GET", f"/no/such/path?token={token}")
        self.client("PATCH", f"/upload?token={upload}", headers, b"x")
        self.client("PUT", f"/upload?token={upload}", headers, b"x")
        self.manager("GET", "/volumes", secret="a-wrong-secret")
        self.manager("GET", f"/volumes?token={good}")
        self.alive()
        log = self.daemon.log.read_text()
        for token in (good, bad, upload):
            self.assertNotIn(token, log)
            self.assertNotIn(token.rpartition(".")[2], log)
        for secret in (TOKEN_SECRET, MANAGER_SECRET, "a-wrong-secret"):
            self.assertNotIn(secret, log)


globals().update(dialects(Tokens))

# -*- test-case-name: tests.test_tokens -*-
"""
Tokens: made, verified, forged, and exchanged with nodes of the original.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import jwt
from hypothesis import example, given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

import storageproxy
from storageproxy.errors import InvalidParameters
from storageproxy.tokens import RECENT, DownloadToken, TokenKey, UploadToken
from storageproxy.vfolder import VFolderID
from tests.strategies import QUICK, json_values, relative_paths, vfolder_ids

SECRET = "a-secret-of-more-than-32-characters-0123456789"
NOW = 1_600_000_000.25
KEY = TokenKey(SECRET, 3600.0)
#: That of another process, which remembers nothing.
ANOTHER = TokenKey(SECRET, 3600.0)
FOLDER = VFolderID.parse("0123456789abcdef0123456789abcdef")
SESSION = "0123456789abcdef0123456789abcdef"
DOWNLOAD: dict[str, Any] = {
    "op": "download",
    "volume": "local",
    "vfid": str(FOLDER),
    "relpath": "a/b.txt",
    "exp": int(NOW) + 60,
}
UPLOAD: dict[str, Any] = {**DOWNLOAD, "op": "upload", "size": 17, "session": SESSION}


def encoded(data: bytes) -> str:
    """Base64 as in JWTs."""
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode("ascii")


def signed(claims: object, secret: str = SECRET, **header: object) -> str:
    """A token made by hand; claims that are text already are signed as they are."""
    head = json.dumps({"typ": "JWT", "alg": "HS256", **header})
    body = claims if isinstance(claims, str) else json.dumps(claims)
    message = f"{encoded(head.encode())}.{encoded(body.encode())}"
    signature = hmac.new(secret.encode(), message.encode(), hashlib.sha256).digest()
    return f"{message}.{encoded(signature)}"


class RoundTripTests(SynchronousTestCase):
    """Tokens that are made here."""

    @QUICK
    @given(
        st.text(min_size=1, max_size=10).filter(str.strip),
        vfolder_ids(),
        relative_paths(),
        st.floats(0, 10**10),
    )
    def test_download(self, volume: str, vfid: VFolderID, relpath: str, now: float) -> None:
        """A token for a download says what it was made for, for as long as it lives."""
        token = KEY.download(now, volume, vfid, relpath)
        claims = KEY.verify(now, token, DownloadToken)
        self.assertEqual(claims, ANOTHER.verify(now, token, DownloadToken))
        self.assertEqual(
            (claims.op, claims.volume, claims.vfid, claims.relpath, claims.archive),
            ("download", volume, vfid, relpath, False),
        )
        self.assertIsNone(claims.unmanaged_path)
        self.assertEqual(claims.exp, int(now + 3600))

    @QUICK
    @given(vfolder_ids(), relative_paths(), st.integers(0, 2**63), st.uuids())
    def test_upload(self, vfid: VFolderID, relpath: str, size: int, session: Any) -> None:
        """So does one for an upload."""
        token = KEY.upload(NOW, "local", vfid, relpath, size, session.hex)
        claims = KEY.verify(NOW, token, UploadToken)
        self.assertEqual(claims, ANOTHER.verify(NOW, token, UploadToken))
        self.assertEqual(
            (claims.volume, claims.vfid, claims.relpath, claims.size, claims.session),
            ("local", vfid, relpath, size, session.hex),
        )

    def test_lifetime(self) -> None:
        """A token is good until the second it ends in, and not after."""
        token = KEY.download(1000.0, "local", FOLDER, "x")
        KEY.verify(4599.9, token, DownloadToken)
        for now in (4600.0, 4600.1, 10**9):
            error = self.assertRaises(InvalidParameters, KEY.verify, now, token, DownloadToken)
            self.assertEqual(error.status, 400)
            self.assertIn("expired", error.message)

    def test_read_by_the_original(self) -> None:
        """A node of the original can read them: the claims are those that it looks for."""
        token = KEY.upload(NOW, "local", FOLDER, "a/b", 17, SESSION)
        claims = jwt.decode(token, SECRET, algorithms=["HS256"], options={"verify_exp": False})
        self.assertEqual(
            claims,
            {
                "op": "upload",
                "volume": "local",
                "vfid": "01234567-89ab-cdef-0123-456789abcdef",
                "relpath": "a/b",
                "size": 17,
                "session": SESSION,
                "exp": 1_600_003_600,
            },
        )
        self.assertIsInstance(claims["exp"], int)
        self.assertEqual(jwt.get_unverified_header(token), {"typ": "JWT", "alg": "HS256"})

    def test_as_by_the_library(self) -> None:
        """They are what PyJWT makes of the same claims, to the byte."""
        for path in ("a/b", "l\u00f6we/\u65e5\u672c", 'a "quoted" name', "\udce9"):
            token = KEY.upload(NOW, "local", FOLDER, path, 17, SESSION)
            claims = jwt.decode(token, SECRET, algorithms=["HS256"], options={"verify_exp": False})
            self.assertEqual(token, jwt.encode(claims, SECRET, algorithm="HS256"))

    def test_url_safe(self) -> None:
        """They can stand in a URL as they are."""
        token = KEY.download(NOW, "local", FOLDER, "ä/?&=#% +")
        self.assertRegex(token, r"\A[A-Za-z0-9_.-]+\Z")


class ExchangeTests(SynchronousTestCase):
    """Tokens that nodes of the original have made."""

    def test_download(self) -> None:
        """One that PyJWT makes of a date is accepted."""
        claims = {**DOWNLOAD, "exp": datetime.fromtimestamp(NOW, UTC) + timedelta(days=1)}
        token = jwt.encode(claims, SECRET, algorithm="HS256")
        self.assertEqual(KEY.verify(NOW, token, DownloadToken).relpath, "a/b.txt")

    def test_upload(self) -> None:
        """So is one for an upload."""
        token = jwt.encode(UPLOAD, SECRET, algorithm="HS256")
        claims = KEY.verify(NOW, token, UploadToken)
        self.assertEqual((claims.size, claims.session, claims.vfid), (17, SESSION, FOLDER))

    def test_scoped(self) -> None:
        """So is one in the dialect of later releases."""
        vfid = f"user:{FOLDER}/{FOLDER.folder.hex}"
        claims = KEY.verify(NOW, signed({**DOWNLOAD, "vfid": vfid}), DownloadToken)
        self.assertEqual(str(claims.vfid), vfid)

    def test_options(self) -> None:
        """The claims that the original takes besides are understood, null among them."""
        claims = KEY.verify(
            NOW, signed({**DOWNLOAD, "archive": True, "unmanaged_path": "x"}), DownloadToken
        )
        self.assertEqual((claims.archive, claims.unmanaged_path), (True, "x"))
        claims = KEY.verify(NOW, signed({**DOWNLOAD, "unmanaged_path": None}), DownloadToken)
        self.assertIsNone(claims.unmanaged_path)

    def test_unknown_claims(self) -> None:
        """Claims that nobody knows do no harm."""
        KEY.verify(NOW, signed({**UPLOAD, "iat": 10**11, "jti": "x", "new": [1]}), UploadToken)

    def test_clock(self) -> None:
        """What ends is decided by the clock that is passed in, not by the machine's."""
        KEY.verify(5.0, signed({**DOWNLOAD, "exp": 6}), DownloadToken)

    def test_again(self) -> None:
        """A token that was good is refused when its time is over, and for anything else."""
        token = signed(DOWNLOAD)
        for _ in range(2):
            self.assertEqual(KEY.verify(NOW, token, DownloadToken).relpath, "a/b.txt")
        self.assertRaises(InvalidParameters, KEY.verify, DOWNLOAD["exp"], token, DownloadToken)
        self.assertRaises(InvalidParameters, KEY.verify, NOW, token, UploadToken)
        other = TokenKey(SECRET + "x", 3600.0)
        self.assertRaises(InvalidParameters, other.verify, NOW, token, DownloadToken)
        self.assertEqual(KEY.verify(NOW, token, DownloadToken).relpath, "a/b.txt")

    def test_fraction(self) -> None:
        """A fraction of a second is a time as well."""
        KEY.verify(NOW, signed({**DOWNLOAD, "exp": NOW + 0.5}), DownloadToken)


class RefusalTests(SynchronousTestCase):
    """Tokens that are not good."""

    def assertRefused(
        self, token: str | None, cls: type[Any] = DownloadToken, key: TokenKey = KEY
    ) -> Any:
        """Assert that the answer is 400 and names the token; return what it says of it."""
        error = self.assertRaises(InvalidParameters, key.verify, NOW, token, cls)
        self.assertEqual(error.status, 400)
        self.assertEqual(list(error.members["data"]), ["token"])
        self.assertNotIn(key.secret, json.dumps(error.document()))
        return error.members["data"]["token"]

    def test_missing(self) -> None:
        """No token is told from a bad one."""
        self.assertEqual(self.assertRefused(None), "is required")

    def test_other_secret(self) -> None:
        """A token with another secret's signature is refused."""
        said = self.assertRefused(signed(DOWNLOAD, "x" * 40))
        self.assertTrue(said.startswith("cannot decode the given value as JWT"), said)

    def test_unsigned(self) -> None:
        """A token with no signature is refused, however it says so."""
        for algorithm in ("none", "None", "NONE", ""):
            head = encoded(json.dumps({"typ": "JWT", "alg": algorithm}).encode())
            body = encoded(json.dumps(DOWNLOAD).encode())
            self.assertRefused(f"{head}.{body}.")
            self.assertRefused(signed(DOWNLOAD, alg=algorithm))

    def test_other_algorithms(self) -> None:
        """Of the algorithms there is one; with others the right secret does not help."""
        for algorithm in ("HS384", "HS512"):
            self.assertRefused(jwt.encode(DOWNLOAD, SECRET * 2, algorithm=algorithm))
        self.assertRefused(signed(DOWNLOAD, alg="HS512"))
        self.assertRefused(signed(DOWNLOAD, alg="RS256"))

    def test_no_end(self) -> None:
        """A token that never ends is refused, unlike in the original."""
        self.assertIn(
            "exp",
            str(
                self.assertRefused(
                    signed({name: value for name, value in DOWNLOAD.items() if name != "exp"})
                )
            ),
        )

    def test_wrong_end(self) -> None:
        """An end that is no time is refused, and so is one that never comes."""
        for end in (
            "NaN",
            "Infinity",
            "-Infinity",
            "null",
            "true",
            '"1e30"',
            "[]",
            "{}",
            "1e999",
            "1" + "0" * 400,
        ):
            body = json.dumps({**DOWNLOAD, "exp": 0}).replace('"exp": 0', f'"exp": {end}')
            self.assertIn(end, body)
            self.assertRefused(signed(body))

    def test_other_operation(self) -> None:
        """A token for a download is none for an upload, nor the other way."""
        self.assertIn("op", self.assertRefused(signed(UPLOAD), DownloadToken))
        self.assertIn("op", self.assertRefused(signed({**UPLOAD, "op": "download"}), UploadToken))
        self.assertRefused(KEY.download(NOW, "local", FOLDER, "x"), UploadToken)
        self.assertRefused(KEY.upload(NOW, "local", FOLDER, "x", 1, SESSION), DownloadToken)
        self.assertRefused(signed({**DOWNLOAD, "op": None}))

    def test_wrong_claims(self) -> None:
        """Each claim that is missing or wrong is named."""
        wrong: dict[str, list[Any]] = {
            "volume": [None, "", "  ", 5, []],
            "vfid": [None, "", "x", 5, "..", f"{FOLDER}/x"],
            "relpath": [None, "/etc/passwd", "a\0b", 5],
            "size": [None, -1, "x", 1.5, True, []],
            "session": [None, "", ".", "..", "../x", "a/b", "a\0", "x" * 65, "a b", "a\n", "é", 5],
        }
        for name, values in wrong.items():
            without = {key: value for key, value in UPLOAD.items() if key != name}
            self.assertIn(name, self.assertRefused(signed(without), UploadToken))
            for value in values:
                said = self.assertRefused(signed({**UPLOAD, name: value}), UploadToken)
                self.assertIn(name, said, value)

    def test_no_claims(self) -> None:
        """A payload that is no table of claims is refused."""
        for body in ("[]", "5", "null", '"x"', "", "{", "\ufeff{}"):
            self.assertRefused(signed(body))

    @QUICK
    @given(st.integers(0, 10**6), st.integers(1, 255))
    def test_tampered(self, position: int, difference: int) -> None:
        """A change of any one byte of what is signed, or of the signature, is found out."""
        parts = [
            base64.urlsafe_b64decode(part + "=" * (-len(part) % 4))
            for part in signed(DOWNLOAD).split(".")
        ]
        which = position % 3
        data = bytearray(parts[which])
        data[position // 3 % len(data)] ^= difference
        parts[which] = bytes(data)
        self.assertRefused(".".join(map(encoded, parts)))

    @QUICK
    @given(st.text(st.characters(exclude_categories=["Cs"]), max_size=60))
    @example("")
    @example("..")
    @example("a.b.c")
    @example("é.é.é")
    @example("\0")
    @example(encoded(b'{"alg":' + b"[" * 5000) + ".e30.AAAA")
    @example(encoded(b'{"alg":{}}') + ".e30.AAAA")
    @example(encoded(b'{"alg":' + b"9" * 5000 + b"}") + ".e30.AAAA")
    @example(encoded(b'{"alg":"HS256","crit":["b64"],"b64":false}') + ".e30.AAAA")
    @example(encoded(b'{"alg":"HS256","kid":5}') + ".e30.AAAA")
    @example(encoded(b"\xff\xfe") + ".e30.AAAA")
    def test_garbage(self, token: str) -> None:
        """What is no token at all is refused in the same way."""
        self.assertRefused(token)

    @QUICK
    @given(
        st.dictionaries(
            st.sampled_from([*UPLOAD, "archive", "unmanaged_path", "nbf", "iat", "aud", "sub"]),
            json_values(),
        ),
        st.sampled_from([DownloadToken, UploadToken]),
    )
    def test_arbitrary_claims(self, claims: dict[str, Any], cls: type[Any]) -> None:
        """Whatever was signed, it is either a good token or refused with 400."""
        base = UPLOAD if cls is UploadToken else DOWNLOAD
        try:
            verified = KEY.verify(NOW, signed({**base, **claims}), cls)
        except InvalidParameters as error:
            self.assertEqual(error.status, 400)
        else:
            self.assertGreater(verified.exp, NOW)


class RecentTests(SynchronousTestCase):
    """Tokens that are remembered."""

    def setUp(self) -> None:
        self.key = TokenKey(SECRET, 60.0)
        self.decoded: list[str] = []
        decode = jwt.decode

        def see(token: str, *args: Any, **kwargs: Any) -> Any:
            self.decoded.append(token)
            return decode(token, *args, **kwargs)

        self.patch(jwt, "decode", see)

    def refuse(self, now: float, token: str, cls: type[Any]) -> None:
        self.assertRaises(InvalidParameters, self.key.verify, now, token, cls)

    def test_made_here(self) -> None:
        """What was signed here is not looked into again."""
        token = self.key.download(NOW, "local", FOLDER, "a")
        self.assertEqual(self.key.verify(NOW, token, DownloadToken).relpath, "a")
        self.assertEqual(self.decoded, [])

    def test_made_elsewhere(self) -> None:
        """What another node has signed is looked into once."""
        token = signed(UPLOAD)
        for _ in range(3):
            self.assertEqual(self.key.verify(NOW, token, UploadToken).size, 17)
        self.assertEqual(self.decoded, [token])

    def test_ends(self) -> None:
        """One that is remembered ends when it has to."""
        token = self.key.download(NOW, "local", FOLDER, "a")
        self.key.verify(NOW + 59, token, DownloadToken)
        self.refuse(NOW + 60, token, DownloadToken)

    def test_other_operation(self) -> None:
        """It is for nothing else than before."""
        token = self.key.download(NOW, "local", FOLDER, "a")
        self.refuse(NOW, token, UploadToken)
        self.key.verify(NOW, token, DownloadToken)

    def test_forged(self) -> None:
        """A forgery is looked into each time, however close it comes to one that is remembered."""
        token = self.key.download(NOW, "local", FOLDER, "a")
        forged = token[:-2] + ("AA" if token[-2:] != "AA" else "BB")
        for _ in range(2):
            self.refuse(NOW, forged, DownloadToken)
        self.assertEqual(self.decoded, [forged, forged])

    def test_bounded(self) -> None:
        """So many are remembered and no more; the others are as good as before."""
        tokens = [self.key.download(NOW, "local", FOLDER, str(n)) for n in range(RECENT + 1)]
        for token in reversed(tokens):
            self.key.verify(NOW, token, DownloadToken)
        self.assertEqual(self.decoded, tokens[:1])
        self.assertNotIn(tokens[0], repr(self.key))


class SecretTests(SynchronousTestCase):
    """The secret itself."""

    def test_short(self) -> None:
        """A short secret, as old installations have, works and is not complained about."""
        program = (
            "from storageproxy.tokens import *;"
            " key = TokenKey('short', 60.0);"
            f" token = key.download(5.0, 'local', VFolderID.parse('{FOLDER}'), 'x');"
            " print(key.verify(5.0, token, DownloadToken).relpath)"
        )
        said = subprocess.run(
            [sys.executable, "-W", "always", "-c", program],
            cwd=Path(storageproxy.__file__).absolute().parent.parent,
            capture_output=True,
            text=True,
            check=True,
        )
        self.assertEqual((said.stdout, said.stderr), ("x\n", ""))

    def test_utf8(self) -> None:
        """A secret of any letters is taken as UTF-8, as the original does."""
        secret = "Schlüssel-für-alle-Knoten-0123456789"
        key = TokenKey(secret, 60.0)
        key.verify(NOW, signed(DOWNLOAD, secret), DownloadToken)

    def test_not_shown(self) -> None:
        """The secret is not in what may end up in a log."""
        self.assertNotIn(SECRET, repr(KEY))
        self.assertNotIn(SECRET, str(KEY))

# -*- test-case-name: tests.test_tus -*-
"""
The tus protocol: what the headers of a request are decided to mean.
"""

from __future__ import annotations

import base64
import hashlib
import zlib

from hypothesis import example, given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from storageproxy import tus
from storageproxy.errors import (
    InvalidParameters,
    OffsetMismatch,
    StorageProxyError,
    UnsupportedMediaType,
    UnsupportedTusVersion,
    UploadTooLarge,
)
from tests.strategies import QUICK, header_values

#: Values of three headers, each with the status that it is answered with, or None if it is fine.
VERSIONS = [(None, None), ("1.0.0", None), ("0.2.2", 412), ("1.0", 412), ("2.0.0", 412), ("", 412)]
TYPES = [
    (None, None),
    ("application/offset+octet-stream", None),
    ("application/octet-stream", None),
    ("Application/Offset+Octet-Stream; charset=binary", None),
    ("text/plain", 415),
    ("application/json", 415),
    ("multipart/form-data; boundary=x", 415),
]
OFFSETS = [
    ("0", None),
    ("17", None),
    ("0017", None),
    (str(2**63 - 1), None),
    (None, 400),
    ("", 400),
    ("-1", 400),
    ("+1", 400),
    ("1.0", 400),
    ("1e3", 400),
    ("0x10", 400),
    ("1_000", 400),
    (" 17", 400),
    ("17, 18", 400),
    ("\u00b2", 400),
    ("9" * 100, 400),
]

DIGEST_SIZES = {"sha1": 20, "sha256": 32, "sha512": 64, "md5": 16, "crc32": 4}


def headers_of(**values: str | None) -> dict[str, str]:
    """Headers by their names; those that are None are left out."""
    return {name.replace("_", "-"): value for name, value in values.items() if value is not None}


def checksum_of(value: str) -> tus.Checksum | None:
    """What is understood of an ``Upload-Checksum``."""
    return tus.parse_patch({"upload-offset": "0", "upload-checksum": value}).checksum


class VersionTests(SynchronousTestCase):
    """Which protocol the client speaks."""

    def test_ours(self) -> None:
        """A client that says it speaks 1.0.0, or that says nothing, is welcome."""
        tus.check_version({"tus-resumable": "1.0.0"})
        tus.check_version({})

    @QUICK
    @given(header_values().filter(lambda value: value != "1.0.0"))
    @example("1.0.0 ")
    @example("1.0.1")
    def test_others(self, version: str) -> None:
        """A client of another version gets 412, and is told which version there is."""
        error = self.assertRaises(
            UnsupportedTusVersion, tus.check_version, {"tus-resumable": version}
        )
        self.assertEqual(error.status, 412)
        self.assertEqual(error.headers["Tus-Version"], "1.0.0")

    def test_advertised(self) -> None:
        """What is said to be supported is what a tus client would look for."""
        self.assertEqual(tus.VERSION, "1.0.0")
        self.assertEqual(set(tus.EXTENSIONS), {"creation", "expiration", "termination", "checksum"})


class PatchHeaderTests(SynchronousTestCase):
    """The headers of a PATCH."""

    @QUICK
    @given(st.sampled_from(VERSIONS), st.sampled_from(TYPES), st.sampled_from(OFFSETS))
    def test_combinations(
        self,
        version: tuple[str | None, int | None],
        media_type: tuple[str | None, int | None],
        offset: tuple[str | None, int | None],
    ) -> None:
        """
        A PATCH is taken when version, type and offset are all right; else the first of them that
        is wrong says how it is answered.
        """
        headers = headers_of(
            tus_resumable=version[0], content_type=media_type[0], upload_offset=offset[0]
        )
        expected = version[1] or media_type[1] or offset[1]
        try:
            patch = tus.parse_patch(headers)
        except StorageProxyError as error:
            self.assertEqual(error.status, expected, headers)
        else:
            self.assertIsNone(expected, headers)
            assert offset[0] is not None
            self.assertEqual(patch.offset, int(offset[0]))

    def test_errors(self) -> None:
        """Each mistake has an error of its own that programs can tell apart."""
        self.assertRaises(
            UnsupportedMediaType,
            tus.parse_patch,
            {"content-type": "text/plain", "upload-offset": "0"},
        )
        self.assertRaises(UnsupportedTusVersion, tus.parse_patch, {"tus-resumable": "9"})
        error = self.assertRaises(InvalidParameters, tus.parse_patch, {})
        self.assertEqual(error.members["data"], {"Upload-Offset": "is required"})

    @QUICK
    @given(
        st.dictionaries(
            st.sampled_from(
                ["tus-resumable", "content-type", "upload-offset", "upload-checksum", "x"]
            ),
            header_values() | st.sampled_from(["1.0.0", "0", "application/octet-stream"]),
        )
    )
    def test_arbitrary_headers(self, headers: dict[str, str]) -> None:
        """Whatever the headers are, the client is told what it did wrong, with a 4xx."""
        try:
            tus.parse_patch(headers)
        except StorageProxyError as error:
            self.assertIn(error.status, (400, 412, 415))


class CreationTests(SynchronousTestCase):
    """The headers of a POST."""

    @QUICK
    @given(st.integers(0, 2**63 - 1), st.none() | st.integers(0, 2**63 - 1))
    def test_length(self, size: int, length: int | None) -> None:
        """The length that the client announces has to be the one the token was made for."""
        headers = headers_of(upload_length=None if length is None else str(length))
        if length == size:
            tus.parse_creation(headers, size)
        else:
            error = self.assertRaises(InvalidParameters, tus.parse_creation, headers, size)
            self.assertEqual(error.status, 400)
            self.assertEqual(list(error.members["data"]), ["Upload-Length"])

    @QUICK
    @given(st.integers(0, 2**63 - 1))
    def test_right_length(self, size: int) -> None:
        """The right length is taken."""
        tus.parse_creation({"upload-length": str(size)}, size)

    def test_malformed(self) -> None:
        """A length that is no number, or a deferred one, is a 400."""
        for headers in (
            {"upload-length": "x"},
            {"upload-length": "-1"},
            {"upload-length": ""},
            {"upload-defer-length": "1"},
        ):
            self.assertRaises(InvalidParameters, tus.parse_creation, headers, 5)

    def test_version(self) -> None:
        """Another version of the protocol is told so before anything else."""
        self.assertRaises(UnsupportedTusVersion, tus.parse_creation, {"tus-resumable": "0.1"}, 5)


class AppendTests(SynchronousTestCase):
    """Whether a PATCH fits to what the session holds."""

    @QUICK
    @given(
        asked=st.integers(0, 20),
        held=st.integers(0, 20),
        more=st.integers(0, 20),
        length=st.none() | st.integers(0, 40),
    )
    def test_decisions(self, asked: int, held: int, more: int, length: int | None) -> None:
        """
        Bytes are taken where they are missing and nowhere else (409), and not more than were
        announced (413).
        """
        size = held + more
        patch = tus.Patch(asked, None)
        if asked != held:
            error: StorageProxyError = self.assertRaises(
                OffsetMismatch, tus.check_append, patch, held, size, length
            )
            self.assertEqual(error.status, 409)
            self.assertEqual(error.headers["Upload-Offset"], str(held))
        elif length is not None and length > more:
            error = self.assertRaises(UploadTooLarge, tus.check_append, patch, held, size, length)
            self.assertEqual(error.status, 413)
        else:
            tus.check_append(patch, held, size, length)

    @QUICK
    @given(st.integers(0, 2**62), st.integers(0, 2**62), st.integers(1, 2**62))
    def test_large(self, held: int, more: int, beyond: int) -> None:
        """Uploads of any size are filled to the last byte, and not one byte further."""
        patch = tus.Patch(held, None)
        tus.check_append(patch, held, held + more, more)
        self.assertRaises(UploadTooLarge, tus.check_append, patch, held, held + more, more + beyond)


class ChecksumTests(SynchronousTestCase):
    """What a client says of the bytes to come."""

    @QUICK
    @given(st.sampled_from(sorted(DIGEST_SIZES)), st.binary(max_size=200))
    def test_round_trip(self, algorithm: str, data: bytes) -> None:
        """A checksum in any of the algorithms is understood, and computed as others do."""
        digest = (
            zlib.crc32(data).to_bytes(4, "big")
            if algorithm == "crc32"
            else hashlib.new(algorithm, data).digest()
        )
        header = f"{algorithm} {base64.b64encode(digest).decode('ascii')}"
        checksum = tus.parse_patch({"upload-offset": "0", "upload-checksum": header}).checksum
        self.assertEqual(checksum, tus.Checksum(algorithm, digest))
        hasher = tus.CHECKSUMS[algorithm]()
        hasher.update(data[:7])
        hasher.update(data[7:])
        self.assertEqual(hasher.digest(), digest)

    def test_none(self) -> None:
        """No checksum is fine."""
        self.assertIsNone(tus.parse_patch({"upload-offset": "0"}).checksum)

    def test_all_algorithms(self) -> None:
        """The five algorithms of the issue are there, and no other."""
        self.assertEqual(set(tus.CHECKSUMS), set(DIGEST_SIZES))

    def test_known_value(self) -> None:
        """The example of the protocol's own text is understood."""
        checksum = checksum_of("sha1 Lve95gjOVATpfV8EL5X4nxwjKHE=")
        self.assertEqual(checksum, tus.Checksum("sha1", hashlib.sha1(b"Hello World!").digest()))

    def test_unknown_algorithm(self) -> None:
        """An algorithm that is not known is a 400 that names those that are."""
        error = self.assertRaises(InvalidParameters, checksum_of, "sha3 AAAA")
        for algorithm in DIGEST_SIZES:
            self.assertIn(algorithm, error.message)

    @QUICK
    @given(st.sampled_from(sorted(DIGEST_SIZES)), st.binary(max_size=80))
    def test_wrong_length(self, algorithm: str, digest: bytes) -> None:
        """A value that cannot be one of its algorithm is a 400, before any byte is read."""
        header = f"{algorithm} {base64.b64encode(digest).decode('ascii')}"
        if len(digest) == DIGEST_SIZES[algorithm]:
            self.assertIsNotNone(checksum_of(header))
        else:
            self.assertRaises(InvalidParameters, checksum_of, header)

    @QUICK
    @given(header_values())
    @example("")
    @example("sha1")
    @example("sha1 ")
    @example("sha1 ====")
    @example("sha1 AAA")
    @example("sha1 \u00e9\u00e9\u00e9\u00e9")
    @example("sha1 Lve95gjOVATpfV8EL5X4nxwjKHE=,md5 1B2M2Y8AsgTpgAmY7PhCfg==")
    def test_garbage(self, value: str) -> None:
        """A header that cannot be read is the client's mistake (400), not a failure of ours."""
        self.assertRaises(InvalidParameters, checksum_of, value)

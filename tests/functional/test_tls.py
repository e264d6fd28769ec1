"""
Both ports over TLS: curl, tuspy, and a client that offers HTTP/2.
"""

from __future__ import annotations

import datetime
import hashlib
import os
import socket
import ssl
import subprocess
from ipaddress import ip_address
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from tusclient.client import TusClient
from twisted.trial.unittest import SynchronousTestCase

from tests.functional.daemon import AUTH, MANAGER_SECRET, Daemon

MIB = 1024 * 1024


def make_certificate(directory: Path) -> tuple[Path, Path]:
    """A certificate for 127.0.0.1 that is its own authority, and its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "storage-proxy")])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(
            x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))]), critical=False
        )
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(key, hashes.SHA256())
    )
    chain, private = directory / "chain.pem", directory / "key.pem"
    chain.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    private.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    return chain, private


class TLSTests(SynchronousTestCase):
    """Where no proxy ends TLS, the daemon does."""

    def setUp(self) -> None:
        self.root = Path(self.mktemp()).resolve()
        self.root.mkdir(parents=True)
        self.chain, key = make_certificate(self.root)
        self.daemon = Daemon(self.root, tls=(self.chain, key))
        self.daemon.start()
        self.addCleanup(self.daemon.stop)
        self.vfid = self.daemon.folder()

    def curl(self, *arguments: str) -> bytes:
        """Run curl, which has to succeed, and return what it printed."""
        command = ["curl", "--silent", "--show-error", "--fail", "--cacert", str(self.chain)]
        return subprocess.run([*command, *arguments], check=True, capture_output=True).stdout

    def test_curl(self) -> None:
        """A file goes in by one PATCH of 64 MiB, and comes out whole and in ranges."""
        data = os.urandom(MIB) * 64
        source = self.root / "source"
        source.write_bytes(data)
        url = self.daemon.upload_url(self.vfid, "file", len(data))
        self.curl(
            *("-X", "PATCH", url, "-H", "Upload-Offset: 0", "--data-binary", f"@{source}"),
            *("-H", "Content-Type: application/offset+octet-stream"),
        )
        url = self.daemon.download_url(self.vfid, "file")
        self.assertEqual(hashlib.sha256(self.curl(url)).digest(), hashlib.sha256(data).digest())
        self.assertEqual(self.curl("-r", "1000000-1000999", url), data[1000000:1001000])
        self.assertEqual(self.curl("-I", url).count(b"Content-Length: 67108864"), 1)

    def test_tuspy(self) -> None:
        """A tus client that knows only the endpoint uploads in chunks."""
        source = self.root / "source"
        source.write_bytes(os.urandom(5 * MIB + 7))
        url = self.daemon.upload_url(self.vfid, "file", source.stat().st_size)
        # requests, under tuspy, finds the authority there.
        self.patch(os, "environ", {**os.environ, "REQUESTS_CA_BUNDLE": str(self.chain)})
        TusClient(url).uploader(
            str(source), chunk_size=MIB, verify_tls_cert=str(self.chain)
        ).upload()
        uploaded = self.daemon.path(self.vfid) / "file"
        self.assertEqual(uploaded.read_bytes(), source.read_bytes())

    def test_cut(self) -> None:
        """What came before the connection was cut stays."""
        url = self.daemon.upload_url(self.vfid, "file", 8 * MIB)
        context = ssl.create_default_context(cafile=str(self.chain))
        target = url.removeprefix(self.daemon.client_url)
        with socket.create_connection(("127.0.0.1", self.daemon.client_port)) as plain:
            with context.wrap_socket(plain, server_hostname="127.0.0.1") as connection:
                connection.sendall(
                    f"PATCH {target} HTTP/1.1\r\nHost: 127.0.0.1\r\nUpload-Offset: 0\r\n"
                    f"Content-Length: {8 * MIB}\r\n\r\n".encode()
                    + b"x" * (2 * MIB)
                )
                connection.unwrap()
        answer = self.curl("-I", url).decode().lower()
        self.assertIn(f"upload-offset: {2 * MIB}\r\n", answer)

    def test_http_2(self) -> None:
        """HTTP/2 is not spoken, also when a client would rather have it."""
        context = ssl.create_default_context(cafile=str(self.chain))
        context.set_alpn_protocols(["h2", "http/1.1"])
        for port in (self.daemon.client_port, self.daemon.manager_port):
            with socket.create_connection(("127.0.0.1", port)) as plain:
                with context.wrap_socket(plain, server_hostname="127.0.0.1") as connection:
                    self.assertEqual(connection.selected_alpn_protocol(), "http/1.1")

    def test_manager(self) -> None:
        """The manager's port is behind TLS as well."""
        url = f"https://127.0.0.1:{self.daemon.manager_port}/volumes"
        self.assertIn(b'"local"', self.curl("-H", f"{AUTH}: {MANAGER_SECRET}", url))

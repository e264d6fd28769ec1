"""
An authority that lasts for one test, and certificates of it that hold, or do not.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from OpenSSL.crypto import X509, PKey
from OpenSSL.SSL import TLS_SERVER_METHOD, Connection, Context
from twisted.internet.interfaces import IOpenSSLServerConnectionCreator
from twisted.protocols.tls import TLSMemoryBIOProtocol
from zope.interface import implementer

DAY = timedelta(days=1)


class Authority:
    """
    Who signs the certificates of a simulator.

    :ivar pem: its own certificate, for those who are to trust it.
    """

    def __init__(self, name: str = "simulated FlashBlades") -> None:
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = _name(name)
        self._now = datetime.now(UTC)
        certificate = (
            self._begin(self._name, self._key, self._now - 2 * DAY, self._now + DAY)
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(
                x509.KeyUsage(
                    digital_signature=True,
                    key_cert_sign=True,
                    crl_sign=True,
                    content_commitment=False,
                    key_encipherment=False,
                    data_encipherment=False,
                    key_agreement=False,
                    encipher_only=False,
                    decipher_only=False,
                ),
                critical=True,
            )
            .sign(self._key, hashes.SHA256())
        )
        self.pem = certificate.public_bytes(serialization.Encoding.PEM)

    def issue(self, *hosts: str, ended: bool = False) -> Context:
        """
        Make a certificate.

        :param hosts: names and addresses that it is for.
        :param ended: whether it is one that has held until yesterday.
        :return: what a port needs to show it.
        """
        key = ec.generate_private_key(ec.SECP256R1())
        certificate = (
            self._begin(
                _name(hosts[0]),
                key,
                self._now - 2 * DAY,
                self._now - DAY if ended else self._now + DAY,
            )
            .add_extension(
                x509.SubjectAlternativeName([_general_name(host) for host in hosts]),
                critical=False,
            )
            .sign(self._key, hashes.SHA256())
        )
        context = Context(TLS_SERVER_METHOD)
        context.use_privatekey(PKey.from_cryptography_key(key))
        context.use_certificate(X509.from_cryptography(certificate))
        return context

    def _begin(
        self, subject: x509.Name, key: ec.EllipticCurvePrivateKey, begins: datetime, ends: datetime
    ) -> x509.CertificateBuilder:
        return (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self._name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(begins)
            .not_valid_after(ends)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), False)
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key()), False
            )
        )


@implementer(IOpenSSLServerConnectionCreator)
class Shown:
    """
    What a port shows to those who connect; it can be changed while the port is open.

    :ivar kind: one of ``valid``, ``expired``, ``other-host`` and ``unknown``, whose authority
        nobody knows.
    """

    def __init__(self, authority: Authority) -> None:
        hosts = ("127.0.0.1", "localhost")
        self.kind = "valid"
        self._contexts: Mapping[str, Context] = {
            "valid": authority.issue(*hosts),
            "expired": authority.issue(*hosts, ended=True),
            "other-host": authority.issue("array.example"),
            "unknown": Authority("somebody").issue(*hosts),
        }

    def serverConnectionForTLS(self, protocol: TLSMemoryBIOProtocol) -> Connection:
        """Begin a connection."""
        return Connection(self._contexts[self.kind], None)


def _name(common: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common)])


def _general_name(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ip_address(host))
    except ValueError:
        return x509.DNSName(host)

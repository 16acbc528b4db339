"""Certificates of an authority that is used once: what it has not issued at the start, nobody can have issued later."""

from __future__ import annotations

import datetime as dt
import ipaddress
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

VALID = dt.timedelta(days=3650)


@dataclass(frozen=True)
class Issued:
    """A certificate and its key in PEM format."""

    certificate: bytes
    key: bytes


class Authority:
    def __init__(self) -> None:
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._certificate = self._sign("authority", [], self._key)
        self.certificate = self._certificate.public_bytes(serialization.Encoding.PEM)

    def _sign(self, name: str, names: Sequence[x509.GeneralName], key: ec.EllipticCurvePrivateKey) -> x509.Certificate:
        own = key is self._key
        now = dt.datetime.now(dt.UTC)
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        builder = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(subject if own else self._certificate.subject)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - dt.timedelta(days=1))
            .not_valid_after(now + VALID)
            .add_extension(x509.BasicConstraints(ca=own, path_length=None), critical=True)
            # Python 3.13 and newer verify strictly, as RFC 5280 says: without these three they refuse the certificate.
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key()), critical=False)
            .add_extension(_usage(issues=own), critical=True)
        )
        if names:
            builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
        return builder.sign(self._key, hashes.SHA256())

    def issue(self, name: str, names: Sequence[x509.GeneralName]) -> Issued:
        """Issue a certificate for these subject alternative names; `name` is nobody's identity."""
        key = ec.generate_private_key(ec.SECP256R1())
        private = key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        return Issued(self._sign(name, names, key).public_bytes(serialization.Encoding.PEM), private)


def _usage(*, issues: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not issues,
        key_cert_sign=issues,
        crl_sign=issues,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def on_this_machine(name: str) -> list[x509.GeneralName]:
    """Return what a server is called inside its network, and through a port published on this machine."""
    return [x509.DNSName(name), x509.DNSName("localhost"), x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]


def write(folder: Path, identities: Mapping[str, Sequence[x509.GeneralName]]) -> None:
    """
    Issue each of the identities: `folder/name/` holds cert.pem, key.pem and the authority's ca.pem.

    What is there already stays. Containers read the keys as another user, so `folder` alone keeps others out.
    """
    if folder.exists():
        return
    authority = Authority()
    part = folder.with_name(f"{folder.name}.part")
    part.mkdir(parents=True, exist_ok=True, mode=0o700)
    for name, names in identities.items():
        (part / name).mkdir(exist_ok=True)
        (part / name).chmod(0o755)
        issued = authority.issue(name, names)
        for file, content in (
            ("cert.pem", issued.certificate),
            ("key.pem", issued.key),
            ("ca.pem", authority.certificate),
        ):
            (part / name / file).write_bytes(content)
            (part / name / file).chmod(0o644)
    part.rename(folder)

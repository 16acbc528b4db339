"""A certificate authority of one test, and what it issues."""

from __future__ import annotations

import datetime as dt
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import grpc
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID


class Files(NamedTuple):
    certificate: Path
    key: Path


@dataclass(frozen=True)
class Issued:
    name: str
    pem: bytes
    key: bytes

    def write(self, folder: Path) -> Files:
        files = Files(folder / f"{self.name}.pem", folder / f"{self.name}.key")
        files.certificate.write_bytes(self.pem)
        files.key.write_bytes(self.key)
        return files

    def channel(self, authority: Authority) -> grpc.ChannelCredentials:
        return grpc.ssl_channel_credentials(authority.pem, self.key, self.pem)


class Authority:
    def __init__(self) -> None:
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._certificate = self._sign("authority", [], self._key)
        self.pem = self._certificate.public_bytes(serialization.Encoding.PEM)

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
            .not_valid_after(now + dt.timedelta(days=1))
            .add_extension(x509.BasicConstraints(ca=own, path_length=None), critical=True)
        )
        if names:
            builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
        return builder.sign(self._key, hashes.SHA256())

    def issue(self, name: str, names: Sequence[x509.GeneralName]) -> Issued:
        key = ec.generate_private_key(ec.SECP256R1())
        private = key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        return Issued(name, self._sign(name, names, key).public_bytes(serialization.Encoding.PEM), private)

    def write(self, folder: Path) -> Path:
        path = folder / "authority.pem"
        path.write_bytes(self.pem)
        return path

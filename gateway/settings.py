"""The gateway's settings, read from the environment."""

import base64
import binascii
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, ClassVar, NamedTuple
from urllib.parse import urlsplit

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, EllipticCurvePublicKey
from cryptography.hazmat.primitives.serialization import load_der_public_key
from pydantic import AfterValidator, Field, PlainValidator, SecretStr, ValidationInfo, field_validator

from services.chassis.rpc.authentication import is_loopback
from services.chassis.settings import Address, File, Listen, ProcessSettings, Secrets, Url


def parse_public_keys(text: str) -> tuple[EllipticCurvePublicKey, ...]:
    """Read base64 DER keys as SendGrid's settings page shows them, separated by commas."""
    return tuple(_key(number, entry.strip()) for number, entry in enumerate(text.split(","), 1))


def _key(number: int, entry: str) -> EllipticCurvePublicKey:
    try:
        key = load_der_public_key(base64.b64decode(entry, validate=True))
    except (binascii.Error, ValueError, UnsupportedAlgorithm) as error:
        raise ValueError(f"entry {number} must be a public key in base64 DER") from error
    if not isinstance(key, EllipticCurvePublicKey) or not isinstance(key.curve, SECP256R1):
        raise ValueError(f"entry {number} must be a key of the curve P-256")  # noqa: TRY004 - pydantic's contract
    return key


def parse_shared_keys(text: str) -> dict[str, bytes]:
    """Read Twilio's shared keys, `id:secret`, separated by commas."""
    pairs = [entry.strip().partition(":")[::2] for entry in text.split(",")]
    if not all(name and secret for name, secret in pairs):
        raise ValueError("must be id:secret, separated by commas")
    return {name: secret.encode() for name, secret in pairs}


PublicKeys = Annotated[
    tuple[EllipticCurvePublicKey, ...],
    PlainValidator(lambda text: parse_public_keys(text) if isinstance(text, str) else text),
]
SharedKeys = Annotated[
    Mapping[str, bytes],
    PlainValidator(lambda text: parse_shared_keys(text) if isinstance(text, str) else text),
]
#: Without a secret, anybody could post webhooks.
RequiredSecrets = Annotated[Secrets, Field(min_length=1)]


SERVICES = ("payments", "email", "sms")


def _require_header_value(token: SecretStr) -> SecretStr:
    if not re.fullmatch(r"[!-~]+", token.get_secret_value()):
        raise ValueError("must be printable ASCII without spaces")
    return token


class Target(NamedTuple):
    """The address of a service and its TLS files. Without `ca`, calls are not encrypted."""

    address: str
    ca: Path | None = None
    certificate: Path | None = None
    key: Path | None = None
    name: str = ""


class Settings(ProcessSettings, process="GATEWAY", port=8080, operations_port=8081):
    fingerprints: ClassVar[bool] = False

    stripe_webhook_secret: RequiredSecrets
    sendgrid_webhook_public_key: PublicKeys
    twilio_auth_token: RequiredSecrets
    #: The address that the providers call. Twilio signs it.
    public_url: Url = "http://127.0.0.1:8080"
    #: Seconds. SendGrid retries for a day and keeps the signature of its first attempt.
    sendgrid_webhook_window: float = Field(default=26 * 3600.0, gt=0, le=30 * 86_400)
    #: Twilio signs with one of these instead of an auth token if its console says so.
    twilio_shared_keys: SharedKeys = Field(default={}, repr=False)

    #: Where operators call the QueueAdminService of the gateway, over gRPC.
    gateway_admin_listen: Listen = Address("127.0.0.1", 50054)

    payments_target: str = "127.0.0.1:50051"
    #: With a `…_ca`, calls use TLS. `…_cert` and `…_key` are the gateway's client certificate. `…_name` is the name in
    #: the service's certificate, where it differs from the target.
    payments_target_ca: File | None = None
    payments_target_cert: File | None = None
    payments_target_key: File | None = None
    payments_target_name: str = ""
    email_target: str = "127.0.0.1:50052"
    email_target_ca: File | None = None
    email_target_cert: File | None = None
    email_target_key: File | None = None
    email_target_name: str = ""
    sms_target: str = "127.0.0.1:50053"
    sms_target_ca: File | None = None
    sms_target_cert: File | None = None
    sms_target_key: File | None = None
    sms_target_name: str = ""
    #: The gateway's own token; the services must give it the scopes read, send, events and forward.
    gateway_token: Annotated[SecretStr, AfterValidator(_require_header_value)] | None = None
    #: The operator's listeners of the services, for GET /v1/status.
    payments_operations: Url = "http://127.0.0.1:9101"
    email_operations: Url = "http://127.0.0.1:9102"
    sms_operations: Url = "http://127.0.0.1:9103"

    @property
    def public_host(self) -> str:
        return urlsplit(self.public_url).hostname or ""

    @field_validator(*(f"{service}_target_{what}" for service in SERVICES for what in ("cert", "key", "name")))
    @classmethod
    def _require_whole_target(cls, value: Path | str | None, info: ValidationInfo) -> Path | str | None:
        target, _, what = str(info.field_name).rpartition("_")
        if value and info.data.get(f"{target}_ca", ...) is None:
            raise ValueError(f"must be set together with {cls.variable(f'{target}_ca')}")
        certificate = info.data.get(f"{target}_cert", ...)
        if what == "key" and certificate is not ... and (value is None) != (certificate is None):
            raise ValueError(f"must be set together with {cls.variable(f'{target}_cert')}")
        return value

    @field_validator("tls_client_ca")
    @classmethod
    def _own_certificate(cls, authority: Path | None, _info: ValidationInfo) -> Path | None:
        """Replace the rule of the other processes: here, no certificate makes the setting right."""
        if authority is not None:
            raise ValueError("must not be set: the providers that post webhooks have no certificate of this authority")
        return authority

    @field_validator("public_url", "gateway_admin_listen")
    @classmethod
    def _require_tokens_off_loopback(cls, value: str | Address, info: ValidationInfo) -> str | Address:
        host = value.host if isinstance(value, Address) else urlsplit(value).hostname or ""
        if info.data.get("auth_tokens") == () and not is_loopback(host):
            raise ValueError(f"must be on loopback, or anybody could call: {cls.variable('auth_tokens')} is not set")
        return value

    def target(self, service: str) -> Target:
        """Return the target of `payments`, `email` or `sms`."""
        address, *tls = (getattr(self, f"{service}_target{what}") for what in ("", "_ca", "_cert", "_key", "_name"))
        return Target(address, *tls)

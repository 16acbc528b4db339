"""What the gateway is told by its environment."""

import base64
import binascii
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, ClassVar, NamedTuple, Self
from urllib.parse import urlsplit

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, EllipticCurvePublicKey
from cryptography.hazmat.primitives.serialization import load_der_public_key
from pydantic import AfterValidator, Field, PlainValidator, SecretStr, ValidationInfo, field_validator, model_validator

from services.chassis.rpc.authentication import is_loopback
from services.chassis.settings import Address, File, Listen, ProcessSettings, Secrets, Url


def parse_public_keys(text: str) -> tuple[EllipticCurvePublicKey, ...]:
    """Read base64 DER keys as SendGrid's settings page shows them, comma between them."""
    return tuple(_key(number, entry.strip()) for number, entry in enumerate(text.split(","), 1))


def _key(number: int, entry: str) -> EllipticCurvePublicKey:
    try:
        key = load_der_public_key(base64.b64decode(entry, validate=True))
    except (binascii.Error, ValueError, UnsupportedAlgorithm) as error:
        raise ValueError(f"entry {number} is no public key in base64") from error
    if not isinstance(key, EllipticCurvePublicKey) or not isinstance(key.curve, SECP256R1):
        raise ValueError(f"entry {number} is no key of the curve P-256")  # noqa: TRY004 - pydantic's contract
    return key


def parse_shared_keys(text: str) -> dict[str, bytes]:
    """Read Twilio's shared keys, `id:secret`, comma between them."""
    pairs = [entry.strip().partition(":")[::2] for entry in text.split(",")]
    if not all(name and secret for name, secret in pairs):
        raise ValueError("must be id:secret, comma between several")
    return {name: secret.encode() for name, secret in pairs}


PublicKeys = Annotated[
    tuple[EllipticCurvePublicKey, ...],
    PlainValidator(lambda text: parse_public_keys(text) if isinstance(text, str) else text),
]
SharedKeys = Annotated[
    Mapping[str, bytes],
    PlainValidator(lambda text: parse_shared_keys(text) if isinstance(text, str) else text),
]
#: At least one secret: without any, the gateway would accept forged webhooks.
SomeSecrets = Annotated[Secrets, Field(min_length=1)]


SERVICES = ("payments", "email", "sms")


def _sendable(token: SecretStr) -> SecretStr:
    if not re.fullmatch(r"[!-~]+", token.get_secret_value()):
        raise ValueError("must be printable ASCII without spaces")
    return token


class Target(NamedTuple):
    """Without `ca`, calls are in clear text."""

    address: str
    ca: Path | None = None
    certificate: Path | None = None
    key: Path | None = None
    name: str = ""


class Settings(ProcessSettings, process="GATEWAY", port=8080, operations_port=8081):
    fingerprints: ClassVar[bool] = False

    stripe_webhook_secret: SomeSecrets
    sendgrid_webhook_public_key: PublicKeys
    twilio_auth_token: SomeSecrets
    #: As the providers call it: Twilio signs its callbacks' addresses.
    public_url: Url = "http://127.0.0.1:8080"
    #: Seconds. SendGrid tries again for a day, with the signature of its first try.
    sendgrid_webhook_window: float = Field(default=26 * 3600.0, gt=0, le=30 * 86_400)
    #: Twilio signs with one of these instead of an auth token where its console says so.
    twilio_shared_keys: SharedKeys = Field(default={}, repr=False)

    #: Where operators call the QueueAdminService of the gateway, over gRPC.
    gateway_admin_listen: Listen = Address("127.0.0.1", 50054)

    payments_target: str = "127.0.0.1:50051"
    #: With the authority of a service's certificate, it is called over TLS: with a certificate of our own where that is
    #: asked for, and under the name that its certificate has, where it is not the target's.
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
    #: What the services know us by; it needs the scopes read, send, events and forward.
    gateway_token: Annotated[SecretStr, AfterValidator(_sendable)] | None = None
    #: Where the services tell of their providers, for GET /v1/status.
    payments_operations: Url = "http://127.0.0.1:9101"
    email_operations: Url = "http://127.0.0.1:9102"
    sms_operations: Url = "http://127.0.0.1:9103"

    @property
    def public_host(self) -> str:
        return urlsplit(self.public_url).hostname or ""

    @field_validator(*(f"{service}_target_{what}" for service in SERVICES for what in ("cert", "key", "name")))
    @classmethod
    def _whole_target(cls, value: Path | str | None, info: ValidationInfo) -> Path | str | None:
        target, _, what = str(info.field_name).rpartition("_")
        if value and info.data.get(f"{target}_ca", ...) is None:
            raise ValueError(f"must be set together with {cls.variable(f'{target}_ca')}")
        certificate = info.data.get(f"{target}_cert", ...)
        if what == "key" and certificate is not ... and (value is None) != (certificate is None):
            raise ValueError(f"must be set together with {cls.variable(f'{target}_cert')}")
        return value

    def target(self, service: str) -> Target:
        """Return where a service is, and how it is called; names are `payments`, `email` and `sms`."""
        address, *tls = (getattr(self, f"{service}_target{what}") for what in ("", "_ca", "_cert", "_key", "_name"))
        return Target(address, *tls)

    @model_validator(mode="after")
    def _guarded(self) -> Self:
        if self.tls_client_ca is not None:
            raise ValueError("takes webhooks, whose senders have no certificate of ours: use tokens, no client CA")
        if not self.auth_tokens and not is_loopback(self.listen.host):
            raise ValueError(f"{self.listen} is not this machine's loopback: set GATEWAY_AUTH_TOKENS")
        if not self.auth_tokens and not is_loopback(self.gateway_admin_listen.host):
            raise ValueError(f"{self.gateway_admin_listen} is not this machine's loopback: set GATEWAY_AUTH_TOKENS")
        if not self.auth_tokens and not is_loopback(self.public_host):
            raise ValueError(
                "PUBLIC_URL is not this machine's loopback, so strangers may call: set GATEWAY_AUTH_TOKENS"
            )
        return self

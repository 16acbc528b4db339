"""What the gateway is told by its environment."""

import base64
import binascii
from collections.abc import Mapping
from typing import Annotated, ClassVar, Self
from urllib.parse import urlsplit

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, EllipticCurvePublicKey
from cryptography.hazmat.primitives.serialization import load_der_public_key
from pydantic import Field, PlainValidator, SecretStr, model_validator

from services.chassis.authentication import is_loopback
from services.chassis.settings import ProcessSettings, Secrets, Url


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
#: Whoever may leave one out would take anybody's webhooks.
SomeSecrets = Annotated[Secrets, Field(min_length=1)]


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

    payments_target: str = "127.0.0.1:50051"
    email_target: str = "127.0.0.1:50052"
    sms_target: str = "127.0.0.1:50053"
    #: What the services know us by; it needs the scopes read, send, events and forward.
    gateway_token: SecretStr | None = None
    #: Where the services tell of their providers, for GET /v1/status.
    payments_operations: Url = "http://127.0.0.1:9101"
    email_operations: Url = "http://127.0.0.1:9102"
    sms_operations: Url = "http://127.0.0.1:9103"

    @property
    def public_host(self) -> str:
        return urlsplit(self.public_url).hostname or ""

    @model_validator(mode="after")
    def _guarded(self) -> Self:
        if self.tls_client_ca is not None:
            raise ValueError("takes webhooks, whose senders have no certificate of ours: use tokens, no client CA")
        if not self.auth_tokens and not is_loopback(self.listen.host):
            raise ValueError(f"{self.listen} is not this machine's loopback: set GATEWAY_AUTH_TOKENS")
        if not self.auth_tokens and not is_loopback(self.public_host):
            raise ValueError(
                "PUBLIC_URL is not this machine's loopback, so strangers may call: set GATEWAY_AUTH_TOKENS"
            )
        return self

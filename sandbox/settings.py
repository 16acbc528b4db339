"""What the environment says. Instead of NAME, NAME_FILE may be set: the path of a file that holds the value."""

import base64
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_der_private_key, load_pem_private_key


@dataclass(frozen=True)
class Settings:
    listen: str = "127.0.0.1:8090"
    database: Path = Path("var/sandbox.db")
    #: The receiver's base URL. Without one, Stripe's and SendGrid's webhooks wait until a later start names it.
    webhook_target: str = ""
    #: Empty secrets are made up and kept in the state file.
    stripe_webhook_secret: str = field(default="", repr=False)
    sendgrid_private_key: str = field(default="", repr=False)
    #: Several may be valid while a token is rolled: all are let in, the first one signs.
    twilio_auth_tokens: tuple[str, ...] = field(default=(), repr=False)

    @property
    def address(self) -> tuple[str, int]:
        """ValueError where it is none."""
        host, colon, port = self.listen.rpartition(":")
        if not colon or not port.isascii() or not port.isdigit() or int(port) > 65535:
            raise ValueError(self.listen)
        return host.strip("[]") or "127.0.0.1", int(port)


def from_environment(environment: Mapping[str, str]) -> Settings:
    """Read the settings; ValueError names all that are wrong, a line each."""
    wrong: list[str] = []

    def read(name: str, default: str = "") -> str:
        path = environment.get(f"{name}_FILE")
        if environment.get(name) or not path:
            return environment.get(name, "").strip() or default
        try:
            return Path(path).read_text().strip()
        except (OSError, ValueError) as error:
            wrong.append(f"{name}: the file {path} cannot be read: {getattr(error, 'strerror', None) or 'no text'}")
            return default

    def check(name: str, value: Callable[[], object], what: str) -> None:
        try:
            value()
        except (ValueError, TypeError, UnsupportedAlgorithm):
            wrong.append(f"{name}: must be {what}")

    def split(name: str) -> list[str]:
        return [part for part in (piece.strip() for piece in read(name).split(",")) if part]

    settings = Settings(
        listen=read("SANDBOX_LISTEN", Settings.listen),
        database=Path(read("SANDBOX_DATABASE", str(Settings.database))),
        webhook_target=read("SANDBOX_WEBHOOK_TARGET").rstrip("/"),
        stripe_webhook_secret=(split("STRIPE_WEBHOOK_SECRET") or [""])[0],
        sendgrid_private_key=read("SANDBOX_SENDGRID_PRIVATE_KEY"),
        twilio_auth_tokens=tuple(split("TWILIO_AUTH_TOKEN")),
    )
    check("SANDBOX_LISTEN", lambda: settings.address, "host:port")
    check("SANDBOX_WEBHOOK_TARGET", lambda: checked_target(settings.webhook_target), "the base of an http(s) URL")
    if settings.sendgrid_private_key:
        what = "an elliptic curve key, in PEM or in base64 of DER"
        check("SANDBOX_SENDGRID_PRIVATE_KEY", lambda: load_ec_key(settings.sendgrid_private_key), what)
    if wrong:
        raise ValueError("\n".join(wrong))
    return settings


def checked_target(target: str) -> None:
    parts = urlsplit(target)
    whole = parts.scheme in ("http", "https") and parts.hostname and (parts.port or 1) > 0
    if target and (not whole or not target.isprintable() or " " in target):
        raise ValueError(target)


def load_ec_key(text: str) -> ec.EllipticCurvePrivateKey:
    """From PEM or from base64 of DER; ValueError or TypeError where it is neither."""
    if text.startswith("-----"):
        key = load_pem_private_key(text.encode(), None)
    else:
        key = load_der_private_key(base64.b64decode(text), None)
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise ValueError("no elliptic curve key")  # noqa: TRY004 - the type of the key is the value of a setting
    return key

"""What the environment says. Instead of NAME, NAME_FILE may be set: the path of a file that holds the value."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path


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
        host, _, port = self.listen.rpartition(":")
        return host.strip("[]") or "127.0.0.1", int(port)


def from_environment(environment: Mapping[str, str]) -> Settings:
    def read(name: str, default: str = "") -> str:
        if name in environment:
            return environment[name].strip()
        path = environment.get(f"{name}_FILE")
        return Path(path).read_text().strip() if path else default

    def split(name: str) -> list[str]:
        return [part for part in (piece.strip() for piece in read(name).split(",")) if part]

    return Settings(
        listen=read("SANDBOX_LISTEN", Settings.listen),
        database=Path(read("SANDBOX_DATABASE", str(Settings.database))),
        webhook_target=read("SANDBOX_WEBHOOK_TARGET").rstrip("/"),
        stripe_webhook_secret=(split("STRIPE_WEBHOOK_SECRET") or [""])[0],
        sendgrid_private_key=read("SANDBOX_SENDGRID_PRIVATE_KEY"),
        twilio_auth_tokens=tuple(split("TWILIO_AUTH_TOKEN")),
    )

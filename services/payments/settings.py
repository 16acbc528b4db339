"""The settings of the payments service."""

from urllib.parse import urlsplit

from pydantic import SecretStr, ValidationInfo, field_validator

from services.chassis.settings import PerSecond, ProcessSettings

STRIPE = "https://api.stripe.com"
LIVE = ("sk_live_", "rk_live_")
TEST = ("sk_test_", "rk_test_")


class Settings(ProcessSettings, process="PAYMENTS", port=50051, operations_port=9101):
    #: A secret or restricted key (`rk_…`). Events of the other mode, live or test, are ignored.
    stripe_secret_key: SecretStr
    stripe_api_base: str = STRIPE
    #: Calls per second of all replicas together. Stripe's own limit for one endpoint is 25.
    stripe_per_second: PerSecond = 25.0

    @property
    def livemode(self) -> bool:
        return self.stripe_secret_key.get_secret_value().startswith(LIVE)

    @field_validator("stripe_secret_key")
    @classmethod
    def _known_prefix(cls, key: SecretStr) -> SecretStr:
        if not key.get_secret_value().startswith(LIVE + TEST):
            raise ValueError(f"must begin with one of {', '.join(LIVE + TEST)}")
        return key

    @field_validator("stripe_api_base")
    @classmethod
    def _address(cls, base: str) -> str:
        if urlsplit(base).scheme not in ("http", "https") or not urlsplit(base).hostname:
            raise ValueError("must be an http:// or https:// address")
        return base.rstrip("/")

    @field_validator("stripe_api_base")
    @classmethod
    def _live_key_needs_stripe(cls, base: str, info: ValidationInfo) -> str:
        key = info.data.get("stripe_secret_key")
        if key is not None and key.get_secret_value().startswith(LIVE) and base != STRIPE:
            raise ValueError(f"must be {STRIPE}, since STRIPE_SECRET_KEY is a live key")
        return base

"""What the environment says about the sms service."""

from typing import Annotated

from phonenumbers import SUPPORTED_REGIONS
from pydantic import BeforeValidator, Field, PlainValidator, SecretStr, ValidationInfo, field_validator

from services.chassis.settings import PerSecond, ProcessSettings, Secrets, Url
from services.sms.quiet_hours import QuietHours

TWILIO = "https://api.twilio.com"


def _regions(text: object) -> object:
    regions = [part.strip().upper() for part in text.split(",") if part.strip()] if isinstance(text, str) else text
    if isinstance(regions, list) and not set(regions) <= SUPPORTED_REGIONS:
        raise ValueError("are no regions such as BR,PT")
    return regions


def _quiet_hours(given: str | QuietHours) -> QuietHours:
    return QuietHours.parse(given) if isinstance(given, str) else given


class Settings(ProcessSettings, process="SMS", port=50053, operations_port=9103):
    twilio_account_sid: str
    #: A key of its own (SK…) leaves the auth token to the gateway, which needs it for signatures.
    twilio_api_key_sid: str = ""
    twilio_api_key_secret: SecretStr = SecretStr("")
    twilio_auth_token: Secrets = ()
    twilio_phone_number: str
    twilio_api_base: str = TWILIO
    #: Texts a second, by all replicas together.
    twilio_per_second: PerSecond = 10.0
    #: Where the gateway is reached from outside; without it nobody tells what became of a text.
    public_url: Url | None = None
    #: Seals codes that wait: once it is changed, those are lost.
    sms_pepper: SecretStr = Field(min_length=16)
    #: Whose mobile numbers are texted.
    sms_regions: Annotated[tuple[str, ...], BeforeValidator(_regions)] = ("BR",)

    #: When reminders rest, on the recipient's clock: `21:00-08:00`, or `off`. A time zone behind it, otherwise
    #: America/Sao_Paulo, counts for numbers of which no zone is known, or of so many that no hour is day in all.
    sms_quiet_hours: Annotated[QuietHours, PlainValidator(_quiet_hours)] = QuietHours()

    @property
    def credentials(self) -> tuple[str, str]:
        if self.twilio_api_key_sid:
            return self.twilio_api_key_sid, self.twilio_api_key_secret.get_secret_value()
        return self.twilio_account_sid, self.twilio_auth_token[0].get_secret_value()

    @property
    def magic_numbers(self) -> bool:
        return self.twilio_api_base.rstrip("/") != TWILIO

    @field_validator("twilio_api_key_secret")
    @classmethod
    def _whole_key(cls, secret: SecretStr, info: ValidationInfo) -> SecretStr:
        if bool(info.data.get("twilio_api_key_sid")) != bool(secret.get_secret_value()):
            raise ValueError("must be set together with TWILIO_API_KEY_SID")
        return secret

    @field_validator("twilio_auth_token")
    @classmethod
    def _some_credentials(cls, tokens: tuple[SecretStr, ...], info: ValidationInfo) -> tuple[SecretStr, ...]:
        if not tokens and not info.data.get("twilio_api_key_sid"):
            raise ValueError("must be set, or TWILIO_API_KEY_SID and TWILIO_API_KEY_SECRET")
        return tokens

"""
What the environment says, read once, complaining once.

A process's own names begin with its name (SMS_LISTEN), all others are the field's name in capitals (TWILIO_API_BASE).
Each may also come from the file that NAME_FILE names. An empty variable is a missing one.
"""

import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, NamedTuple, Self, TypeVar

import limits
from pydantic import (
    BeforeValidator,
    Field,
    PlainValidator,
    SecretStr,
    ValidationError,
    field_validator,
    model_validator,
)
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from services.chassis.authentication import Token, parse_tokens


class Address(NamedTuple):
    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


class Unreadable(NamedTuple):
    """Stands for the value of a NAME_FILE that cannot be read, so that it is reported with all other problems."""

    path: str
    why: str


def _parse_address(text: str | Address) -> Address:
    host, _, port = str(text).rpartition(":")
    if not host or not port.isascii() or not port.isdigit() or int(port) > 65535:
        raise ValueError("is not host:port")
    return Address(host.removeprefix("[").removesuffix("]"), int(port))


def _split(text: object) -> object:
    return tuple(part.strip() for part in text.split(",") if part.strip()) if isinstance(text, str) else text


def _parse_limit(text: str) -> limits.RateLimitItem:
    try:
        return limits.parse(text)
    except ValueError as error:
        raise ValueError("is no rate such as 600/minute") from error


Listen = Annotated[Address, PlainValidator(_parse_address)]
Tokens = Annotated[
    tuple[Token, ...], PlainValidator(lambda text: parse_tokens(text) if isinstance(text, str) else text)
]
#: Several valid at once, comma between them: that is how a secret rotates.
Secrets = Annotated[tuple[SecretStr, ...], BeforeValidator(_split)]
RateLimit = Annotated[limits.RateLimitItem, PlainValidator(_parse_limit)]


class ProcessSettings(BaseSettings):
    """What every process has. `class Settings(ProcessSettings, process="SMS", port=50053, operations_port=9103)`."""

    model_config = SettingsConfigDict(frozen=True, extra="ignore")

    process: ClassVar[str]
    defaults: ClassVar[Mapping[str, str]]

    listen: Listen
    operations_listen: Listen
    database_url: str = Field(repr=False)  # it may hold a password
    auth_tokens: Tokens = Field(default=(), repr=False)
    tls_cert: Path | None = None
    tls_key: Path | None = None
    #: With it, callers need a certificate of this authority.
    tls_client_ca: Path | None = None
    #: For each caller and replica, "600/minute"; no limit when not set.
    caller_limit: RateLimit | None = None
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = "INFO"

    def __init_subclass__(cls, process: str, port: int, operations_port: int, **config: Any) -> None:
        super().__init_subclass__(**config)
        cls.process = process
        cls.defaults = {
            "listen": f"127.0.0.1:{port}",
            "operations_listen": f"127.0.0.1:{operations_port}",
            "database_url": f"sqlite:///var/{process.lower()}.db",
        }

    @classmethod
    def variable(cls, field: str) -> str:
        own = field in ProcessSettings.model_fields and field != "log_level"
        return f"{cls.process}_{field}".upper() if own else field.upper()

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        *_args: PydanticBaseSettingsSource,
        **_kwargs: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        return init_settings, _Environment(settings_cls)

    @field_validator("*", mode="before")
    @classmethod
    def _readable(cls, value: object) -> object:
        if isinstance(value, Unreadable):
            raise ValueError(f"the file {value.path} cannot be read: {value.why}")  # noqa: TRY004 - pydantic's contract
        return value

    @model_validator(mode="after")
    def _whole_tls(self) -> Self:
        if (self.tls_cert is None) != (self.tls_key is None):
            raise ValueError("a TLS certificate needs its key, and the key its certificate")
        if self.tls_client_ca is not None and self.tls_cert is None:
            raise ValueError("asking callers for certificates needs a certificate and key of our own")
        return self


class _Environment(PydanticBaseSettingsSource):
    settings_cls: type[ProcessSettings]

    def get_field_value(self, field: Any, field_name: str) -> tuple[Any, str, bool]:  # noqa: ARG002 - pydantic's signature
        name = self.settings_cls.variable(field_name)
        value: object = os.environ.get(name)
        path = os.environ.get(f"{name}_FILE")
        if not value and path:
            try:
                value = Path(path).read_text().strip()
            except (OSError, ValueError) as error:
                value = Unreadable(path, getattr(error, "strerror", None) or type(error).__name__)
        return value or self.settings_cls.defaults.get(field_name), name, False

    def __call__(self) -> dict[str, Any]:
        values = {field: self.get_field_value(None, field)[0] for field in self.settings_cls.model_fields}
        return {field: value for field, value in values.items() if value is not None}


S = TypeVar("S", bound=ProcessSettings)


def load(kind: type[S]) -> S:
    """Read the settings, or name every variable that is missing or wrong and leave with exit code 2."""
    try:
        return kind.model_validate({})
    except ValidationError as invalid:
        for problem in invalid.errors(include_url=False, include_input=False):  # the input may be a secret
            name = kind.variable(str(problem["loc"][0])) if problem["loc"] else kind.process
            wrong = "is required" if problem["type"] == "missing" else problem["msg"].removeprefix("Value error, ")
            sys.stderr.write(f"{name}: {wrong}\n")
        raise SystemExit(2) from None

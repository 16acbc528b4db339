"""
The settings of a process, read once from the environment, with all errors reported together.

Variables of every process begin with its name (SMS_LISTEN). The others are the field's name in capitals
(TWILIO_API_BASE). NAME_FILE may name a file with the value. An empty variable counts as missing.
"""

import os
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, NamedTuple, TypeVar
from urllib.parse import urlsplit

import limits
from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    PlainValidator,
    SecretStr,
    ValidationError,
    ValidationInfo,
    field_validator,
)
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from services.chassis.rpc.authentication import Token, is_loopback, parse_tokens

MIN_KEY_LENGTH = 16


class Address(NamedTuple):
    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


class Unreadable(NamedTuple):
    """The value of a NAME_FILE that cannot be read, so that it is reported with all other errors."""

    path: str
    reason: str


_ADDRESS = re.compile(r"(?:\[([0-9A-Fa-f:.]+)\]|([A-Za-z0-9._-]+|[0-9A-Fa-f:.]+)):([0-9]{1,5})")


def _parse_address(text: str | Address) -> Address:
    parts = _ADDRESS.fullmatch(str(text))
    if parts is None or int(parts[3]) > 65535:
        raise ValueError("must be host:port, with a port from 0 to 65535")
    return Address(parts[1] or parts[2], int(parts[3]))


def parse_url(text: str) -> str:
    """Return a URL such as `https://example.com/hooks` without its last slash. Raises ValueError."""
    try:
        parts = urlsplit(text)
        port = parts.port  # raises ValueError where it is no port
    except ValueError:
        parts, port = urlsplit(""), None
    # urlsplit drops line breaks without an error, so the text itself is checked.
    if not (
        re.fullmatch(r"https?://[!-~]+", text)
        and re.fullmatch(r"[a-z0-9._:-]+", parts.hostname or "")
        and port != 0
        and not set("?#@\\") & set(text)
    ):
        raise ValueError("must be an address such as https://hooks.example.com, without user, query or fragment")
    return text.rstrip("/")


def _split(text: object) -> object:
    return tuple(part.strip() for part in text.split(",") if part.strip()) if isinstance(text, str) else text


def _parse_limit(text: str) -> limits.RateLimitItem:
    try:
        (rate,) = limits.parse_many(text)
    except ValueError as error:
        raise ValueError("must be one rate such as 600/minute") from error
    if rate.amount < 1 or rate.multiples < 1:
        raise ValueError("must be a rate above zero, such as 600/minute")
    return rate


def _long(keys: tuple[SecretStr, ...]) -> tuple[SecretStr, ...]:
    if any(len(key.get_secret_value()) < MIN_KEY_LENGTH for key in keys):
        raise ValueError(f"must be random keys of {MIN_KEY_LENGTH} or more characters, comma between them")
    return keys


def _stored_somewhere(url: str) -> str:
    if not re.fullmatch(r"(sqlite:///|postgres(ql)?://)[^\x00-\x1f\x7f]+", url):
        raise ValueError("must begin with sqlite:/// and a file, or with postgresql://")
    return url


def _readable(path: Path) -> Path:
    try:
        path.read_bytes()
    except OSError as error:
        raise ValueError(f"must be a file that can be read: {error.strerror}") from error
    return path


Url = Annotated[str, PlainValidator(parse_url)]
Listen = Annotated[Address, PlainValidator(_parse_address)]
Tokens = Annotated[
    tuple[Token, ...], PlainValidator(lambda text: parse_tokens(text) if isinstance(text, str) else text)
]
#: Several secrets, comma between them, all valid at one time, so that a secret can rotate.
Secrets = Annotated[tuple[SecretStr, ...], BeforeValidator(_split)]
RateLimit = Annotated[limits.RateLimitItem, PlainValidator(_parse_limit)]
#: A file in PEM format.
File = Annotated[Path, AfterValidator(_readable)]
#: Requests per second to a provider.
PerSecond = Annotated[float, Field(ge=0.001, le=100_000)]


class ProcessSettings(BaseSettings):
    """Settings of every process: `class Settings(ProcessSettings, process="SMS", port=50053, operations_port=9103)`."""

    model_config = SettingsConfigDict(frozen=True, extra="ignore", allow_inf_nan=False, validate_default=True)

    process: ClassVar[str]
    #: Whether the process compares repeated idempotency keys by fingerprints.
    fingerprints: ClassVar[bool] = True
    defaults: ClassVar[Mapping[str, str]]

    listen: Listen
    operations_listen: Listen
    database_url: Annotated[str, AfterValidator(_stored_somewhere)] = Field(repr=False)  # a URL may hold a password
    tls_cert: File | None = None
    tls_key: File | None = None
    #: With it, callers need a certificate of this authority, and `auth_tokens` must name them.
    tls_client_ca: File | None = None
    auth_tokens: Tokens = Field(default=(), repr=False)
    #: The first key makes fingerprints; the others still recognise stored ones while keys rotate.
    fingerprint_keys: Annotated[Secrets, AfterValidator(_long)] = ()
    #: Calls of each caller per replica, such as "600/minute". Unset: no limit.
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
            raise ValueError(f"the file {value.path} must be readable: {value.reason}")  # noqa: TRY004 - pydantic's contract
        return value

    # A rule between fields stands at the last of them, so that one run reports all errors. `info.data` lacks a field
    # that is itself wrong.

    @field_validator("tls_key")
    @classmethod
    def _whole_pair(cls, key: Path | None, info: ValidationInfo) -> Path | None:
        if "tls_cert" in info.data and (key is None) != (info.data["tls_cert"] is None):
            raise ValueError(f"must be set together with {cls.variable('tls_cert')}")
        return key

    @field_validator("tls_client_ca")
    @classmethod
    def _own_certificate(cls, authority: Path | None, info: ValidationInfo) -> Path | None:
        if authority is not None and info.data.get("tls_cert", ...) is None:
            raise ValueError(f"must be set together with {cls.variable('tls_cert')} and {cls.variable('tls_key')}")
        return authority

    @field_validator("auth_tokens")
    @classmethod
    def _known_callers(cls, tokens: tuple[Token, ...], info: ValidationInfo) -> tuple[Token, ...]:
        listen, authority = info.data.get("listen"), info.data.get("tls_client_ca", ...)
        if not tokens and authority not in {None, ...}:
            raise ValueError(
                f"must name the callers with certificates of {cls.variable('tls_client_ca')}: name:scopes:san=…"
            )
        if not tokens and listen is not None and not is_loopback(listen.host):
            raise ValueError(f"must be set where callers are not on loopback: {cls.variable('listen')}={listen}")
        if authority is None and any(token.identity for token in tokens):
            raise ValueError(f"must have no san= entries without {cls.variable('tls_client_ca')}")
        return tokens

    @field_validator("fingerprint_keys")
    @classmethod
    def _own_keys(cls, keys: tuple[SecretStr, ...], info: ValidationInfo) -> tuple[SecretStr, ...]:
        listen = info.data.get("listen")
        if cls.fingerprints and not keys and listen is not None and not is_loopback(listen.host):
            raise ValueError("must be set off loopback, to a random key that all replicas share")
        return keys


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
    """Return the settings, or report every missing or wrong variable and exit with code 2."""
    try:
        return kind.model_validate({})
    except ValidationError as invalid:
        for problem in invalid.errors(include_url=False, include_input=False):  # an input may be a secret
            name = kind.variable(str(problem["loc"][0])) if problem["loc"] else kind.process
            wrong = "is required" if problem["type"] == "missing" else problem["msg"].removeprefix("Value error, ")
            sys.stderr.write(f"{name}: {wrong}\n")
        raise SystemExit(2) from None

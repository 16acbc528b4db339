"""Who calls, and what a caller may do."""

import hashlib
import hmac
import ipaddress
import re
from collections.abc import Sequence
from typing import Literal, NamedTuple, cast, get_args

from services.chassis.errors import PermissionDenied, Unauthenticated

Scope = Literal["read", "send", "admin"]
SCOPES: frozenset[Scope] = frozenset(get_args(Scope))

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:/@*-]{0,99}")
_READING = re.compile(r"(Get|List|Watch|Preview|Estimate|Explain)[A-Z]")


class Caller(NamedTuple):
    """`name` is stable across token rotation: the space that idempotency keys live in."""

    name: str
    scopes: frozenset[Scope]


class Token(NamedTuple):
    caller: Caller
    digest: bytes


def parse_tokens(text: str) -> tuple[Token, ...]:
    """Read `name:read+send:sha256hex` entries, comma between them. A name may have several: that is how they rotate."""
    return tuple(_token(number, entry.strip()) for number, entry in enumerate(text.split(","), 1))


def _token(number: int, entry: str) -> Token:
    name, scopes, digest = (*entry.rsplit(":", 2), "", "")[:3]
    granted = frozenset(scopes.split("+"))
    if not (_NAME.fullmatch(name) and granted <= SCOPES and re.fullmatch(r"[0-9a-fA-F]{64}", digest)):
        raise ValueError(f"entry {number} is not name:read+send+admin:<SHA-256 of the token in hex>")
    return Token(Caller(name, cast("frozenset[Scope]", granted)), bytes.fromhex(digest))


class Doorkeeper:
    """Where no token is set, whoever has a certificate of our CA, or sits on this machine's loopback, may do all."""

    def __init__(self, tokens: Sequence[Token] = ()) -> None:
        self._tokens = tokens

    def recognise(self, authorization: str, identities: Sequence[str] = ()) -> Caller:
        """Name the caller by its bearer token, else by its certificate's first SAN, else as `local`."""
        if self._tokens:
            return self._bearer(authorization)
        if not identities:
            return Caller("local", SCOPES)
        if not _NAME.fullmatch(identities[0]):
            raise Unauthenticated("the certificate's first subject alternative name cannot be a caller's name")
        return Caller(identities[0], SCOPES)

    def _bearer(self, authorization: str) -> Caller:
        scheme, _, secret = authorization.partition(" ")
        digest = hashlib.sha256(secret.encode()).digest()
        # All of them, always: the time taken tells nothing about which one came close.
        matching = [token.caller for token in self._tokens if hmac.compare_digest(token.digest, digest)]
        if scheme.lower() != "bearer" or not matching:
            raise Unauthenticated("a bearer token is required")
        return matching[0]


def on_behalf_of(caller: Caller, forwarded: str) -> str:
    """Take the name a gateway forwards, if it may say so; anybody else is who he is."""
    believed = "admin" in caller.scopes and _NAME.fullmatch(forwarded)
    return forwarded if believed else caller.name


def scope_of(method: str) -> Scope | None:
    """Which scope `/package.Service/Method` needs; None: open to all."""
    service, _, name = method.removeprefix("/").partition("/")
    if service == "grpc.health.v1.Health":
        return None
    if service.endswith("AdminService"):
        return "admin"
    reading = service.startswith("grpc.reflection.") or _READING.match(name)
    return "read" if reading else "send"


def require(caller: Caller, scope: Scope) -> None:
    if scope not in caller.scopes:
        raise PermissionDenied(f"{caller.name} lacks the scope {scope}")


def is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False

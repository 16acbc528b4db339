"""Who calls, and what a caller may do."""

import hashlib
import hmac
import ipaddress
import re
from collections.abc import Sequence
from typing import Literal, NamedTuple, cast, get_args

from services.chassis.errors import PermissionDenied, Unauthenticated

Scope = Literal["read", "send", "events", "forward", "admin"]
SCOPES: frozenset[Scope] = frozenset(get_args(Scope))

_NAME = r"[A-Za-z0-9][A-Za-z0-9._:/@*-]{0,99}"
_ENTRY = re.compile(rf"({_NAME}?):([a-z+]*):(?:([0-9a-fA-F]{{64}})|san=([!-~]+))")
_READING = re.compile(r"(Get|List|Watch|Preview|Estimate|Explain)[A-Z]")
_OF_NOTHING = hashlib.sha256(b"").digest()

CALLER_KEY, SCOPES_KEY = "x-topsmile-caller", "x-topsmile-scopes"


class Caller(NamedTuple):
    """`name` is stable across token rotation: the space that idempotency keys live in."""

    name: str
    scopes: frozenset[Scope]


LOCAL = Caller("local", SCOPES)


class Token(NamedTuple):
    """One way for a caller to prove its name: the SHA-256 of a bearer token, or a name in a client certificate."""

    caller: Caller
    digest: bytes = b""
    identity: str = ""


def parse_tokens(text: str) -> tuple[Token, ...]:
    """
    Read `name:read+send:credential` entries, comma between them.

    A credential is the SHA-256 of a bearer token in hex, or `san=` and a DNS name or URI of a client certificate. A
    name may have several entries, which is how its credentials rotate. Raises ValueError with everything that is wrong.
    """
    read = [_token(entry.strip()) for entry in text.split(",")]
    tokens = [token for token in read if isinstance(token, Token)]
    wrong = [f"entry {number} {token}" for number, token in enumerate(read, 1) if isinstance(token, str)]
    known: dict[tuple[bytes, str], int] = {}
    for number, token in enumerate(read, 1):
        first = number if isinstance(token, str) else known.setdefault(token[1:], number)
        if first != number:  # it would have two names, or two sets of scopes
            wrong.append(f"entry {number} must have another credential than entry {first}")
    if wrong:
        raise ValueError("; ".join(wrong))
    return tuple(tokens)


def _token(entry: str) -> Token | str:
    """Read one entry, or say what it must be, without a word of it: it may be a token that somebody forgot to hash."""
    parts = _ENTRY.fullmatch(entry)
    if parts is None:
        return "must be name:scopes:<SHA-256 of the token in hex> or name:scopes:san=<name in a client certificate>"
    name, scopes, digest, identity = parts.groups()
    granted = _scopes(scopes)
    if not granted or len(granted) != scopes.count("+") + 1:
        return f"must have scopes among {', '.join(get_args(Scope))}, with + between them, each once"
    if "admin" in granted:
        granted |= {"events"}
    if identity:
        return Token(Caller(name, granted), identity=identity)
    if bytes.fromhex(digest) == _OF_NOTHING:
        return "must not be the SHA-256 of an empty token"
    return Token(Caller(name, granted), bytes.fromhex(digest))


def _scopes(text: str) -> frozenset[Scope]:
    """Return those scopes in `read+send` that exist."""
    return cast("frozenset[Scope]", frozenset(text.split("+")) & SCOPES)


class Authenticator:
    """Without entries everybody is `local`, with all scopes: server.py sees that this is loopback only."""

    def __init__(self, tokens: Sequence[Token] = ()) -> None:
        self._tokens = tokens

    def authenticate(self, authorization: str, identities: Sequence[str] = ()) -> Caller:
        """
        Name the caller by its bearer token, or else by a name in its verified certificate.

        Raises Unauthenticated. A token that is offered must be right: it never falls back to the certificate.
        """
        if not self._tokens:
            return LOCAL
        if authorization or not identities:
            return self._bearer(authorization)
        known = [token.caller for token in self._tokens if token.identity in identities]
        if not known:
            raise Unauthenticated("the client certificate must have a subject alternative name that is known here")
        return known[0]

    def _bearer(self, authorization: str) -> Caller:
        scheme, _, secret = authorization.partition(" ")
        digest = hashlib.sha256(secret.encode()).digest()
        # Compare against every token so that timing does not reveal which one matched.
        matching = [token.caller for token in self._tokens if hmac.compare_digest(token.digest, digest)]
        if scheme.lower() != "bearer" or not matching:
            raise Unauthenticated("a bearer token is required")
        return matching[0]


def on_behalf_of(caller: Caller, name: str = "", scopes: str | None = None) -> Caller:
    """
    Let a caller with the scope `forward` name another caller, and keep those of its scopes that it forwards.

    Nobody else is believed. Without forwarded scopes the call has all of the caller's own. Raises Unauthenticated where
    the name could not be a caller's: the call must not land among the keys of whoever forwards it.
    """
    if "forward" not in caller.scopes:
        return caller
    if name and not re.fullmatch(_NAME, name):
        raise Unauthenticated(f"{CALLER_KEY} must be a caller's name")
    return Caller(name or caller.name, caller.scopes if scopes is None else caller.scopes & _scopes(scopes))


def scope_of(method: str) -> Scope | None:
    """Which scope `/package.Service/Method` needs; None: open to all."""
    service, _, name = method.removeprefix("/").partition("/")
    if service == "grpc.health.v1.Health":
        return None
    if service.endswith("AdminService"):
        return "events" if name == "ApplyEvents" else "admin"
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

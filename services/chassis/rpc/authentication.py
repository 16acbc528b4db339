"""The authentication of callers, and the scopes that they need."""

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
_READ_METHOD = re.compile(r"(Get|List|Watch|Preview|Estimate|Explain)[A-Z]")
_EMPTY_TOKEN = hashlib.sha256(b"").digest()

CALLER_KEY, SCOPES_KEY = "x-topsmile-caller", "x-topsmile-scopes"


class Caller(NamedTuple):
    """`name` stays the same while tokens rotate, because it is the namespace of idempotency keys."""

    name: str
    scopes: frozenset[Scope]


LOCAL = Caller("local", SCOPES)


class Token(NamedTuple):
    """One credential of a caller: the SHA-256 of a bearer token, or a name in a client certificate."""

    caller: Caller
    digest: bytes = b""
    identity: str = ""


def parse_tokens(text: str) -> tuple[Token, ...]:
    """
    Read `name:read+send:credential` entries, comma between them.

    A credential is the SHA-256 of a bearer token in hex, or `san=` and a DNS name or URI of a client certificate. A
    name may have several entries, so that credentials can rotate. Raises ValueError, which names every wrong entry.
    """
    read = [_token(entry.strip()) for entry in text.split(",")]
    tokens = [token for token in read if isinstance(token, Token)]
    wrong = [f"entry {number} {token}" for number, token in enumerate(read, 1) if isinstance(token, str)]
    known: dict[tuple[bytes, str], int] = {}
    for number, token in enumerate(read, 1):
        first = number if isinstance(token, str) else known.setdefault(token[1:], number)
        if first != number:  # one credential cannot have two names or two sets of scopes
            wrong.append(f"entry {number} must have another credential than entry {first}")
    if wrong:
        raise ValueError("; ".join(wrong))
    return tuple(tokens)


def _token(entry: str) -> Token | str:
    """Return one entry, or the rule that it breaks. The text omits the entry, which may be an unhashed token."""
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
    if bytes.fromhex(digest) == _EMPTY_TOKEN:
        return "must not be the SHA-256 of an empty token"
    return Token(Caller(name, granted), bytes.fromhex(digest))


def _scopes(text: str) -> frozenset[Scope]:
    """Return the known scopes in a text such as `read+send`."""
    return cast("frozenset[Scope]", frozenset(text.split("+")) & SCOPES)


class Authenticator:
    """Name callers by their credentials. Without tokens, all are `local` with all scopes (on loopback only)."""

    def __init__(self, tokens: Sequence[Token] = ()) -> None:
        self._tokens = tokens

    def authenticate(self, authorization: str, identities: Sequence[str] = ()) -> Caller:
        """
        Return the caller by its bearer token or, without one, by a name in its verified certificate.

        Raises Unauthenticated, also for a wrong token beside a right certificate.
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
    Return the caller that a caller with the scope `forward` names, with the scopes that both have.

    Other callers cannot forward. Without forwarded scopes, the caller's own apply. Raises Unauthenticated for an
    invalid name, because the call must not use the idempotency keys of the forwarding caller.
    """
    if "forward" not in caller.scopes:
        return caller
    if name and not re.fullmatch(_NAME, name):
        raise Unauthenticated(f"{CALLER_KEY} must be a caller's name")
    return Caller(name or caller.name, caller.scopes if scopes is None else caller.scopes & _scopes(scopes))


def scope_of(method: str) -> Scope | None:
    """Return the scope that `/package.Service/Method` needs; None where it needs none."""
    service, _, name = method.removeprefix("/").partition("/")
    if service == "grpc.health.v1.Health":
        return None
    if service.endswith("AdminService"):
        return "events" if name == "ApplyEvents" else "admin"
    reading = service.startswith("grpc.reflection.") or _READ_METHOD.match(name)
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

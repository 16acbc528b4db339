from __future__ import annotations

import hashlib

import pytest

from services.chassis.errors import Unauthenticated
from services.chassis.rpc.authentication import (
    SCOPES,
    Authenticator,
    Caller,
    is_loopback,
    on_behalf_of,
    parse_tokens,
    scope_of,
)


def entry(name: str, scopes: str, token: str) -> str:
    return f"{name}:{scopes}:{hashlib.sha256(token.encode()).hexdigest()}"


def test_rotated_token_is_the_same_caller() -> None:
    authenticator = Authenticator(parse_tokens(f"{entry('clinic', 'read', 'old')}, {entry('clinic', 'read', 'new')}"))

    assert (
        authenticator.authenticate("Bearer old")
        == authenticator.authenticate("bearer new")
        == Caller("clinic", frozenset({"read"}))
    )


@pytest.mark.parametrize(
    "authorization", ["", "Bearer", "Bearer ", "Bearer nope", "Basic right", "right", "Bearer ção"]
)
def test_wrong_credential_is_refused(authorization: str) -> None:
    authenticator = Authenticator(parse_tokens(entry("clinic", "read", "right")))

    with pytest.raises(Unauthenticated):
        authenticator.authenticate(authorization)


CERTIFICATES = parse_tokens("gateway:read+forward:san=spiffe://clinic/gateway,sms:send:san=sms.clinic.example")


@pytest.mark.parametrize(
    ("identities", "caller"),
    [
        (["spiffe://clinic/gateway"], Caller("gateway", frozenset({"read", "forward"}))),
        (["other.example", "sms.clinic.example"], Caller("sms", frozenset({"send"}))),
        (["sms.clinic.example", "spiffe://clinic/gateway"], Caller("gateway", frozenset({"read", "forward"}))),
    ],
)
def test_certificate_with_a_known_name_has_the_scopes_of_its_entry(identities: list[str], caller: Caller) -> None:
    assert Authenticator(CERTIFICATES).authenticate("", identities) == caller


@pytest.mark.parametrize(
    "identities",
    [[], ["clinic.example"], ["*.clinic.example"], ["SMS.clinic.example."], ["spiffe://clinic/gateway/x"], [""]],
)
def test_certificate_without_a_known_name_is_refused(identities: list[str]) -> None:
    with pytest.raises(Unauthenticated):
        Authenticator(CERTIFICATES).authenticate("", identities)


@pytest.mark.parametrize("authorization", ["Bearer wrong", "Bearer ", "Basic x", "Bearer san=sms.clinic.example"])
def test_wrong_token_beside_a_known_certificate_is_refused(authorization: str) -> None:
    with pytest.raises(Unauthenticated):
        Authenticator(CERTIFICATES).authenticate(authorization, ["sms.clinic.example"])


def test_caller_without_token_entries_is_local_with_all_scopes() -> None:
    assert Authenticator().authenticate("") == Caller("local", SCOPES)
    assert {"read", "send", "events", "forward", "admin"} == SCOPES


@pytest.mark.parametrize(
    "text",
    [
        "", "a:read:zz", "a:write:" + "0" * 64, "a::" + "0" * 64, "a b:read:" + "0" * 64, "x", "a:read:san=",
        "a:read+:san=x", "a:read+read:san=x", "a:read+Send:" + "0" * 64, "a:read:" + "0" * 63, "a:read:san=a b",
        "a:read:" + hashlib.sha256(b"").hexdigest(), "a:send:" + hashlib.sha256(b"").hexdigest().upper(),
        "other:send:" + hashlib.sha256(b"t").hexdigest(),
    ],
)  # fmt: skip
def test_wrong_entry_is_named_by_number_and_not_quoted(text: str) -> None:
    with pytest.raises(ValueError, match="entry 2 must") as refusal:
        parse_tokens(f"{entry('ok', 'read+send', 't')},{text}")

    assert len(text) < 2 or text not in str(refusal.value)


def test_all_wrong_entries_are_named_together() -> None:
    empty = hashlib.sha256(b"").hexdigest()
    with pytest.raises(ValueError, match=r"entry 1 .*entry 3 .*entry 5 ") as refusal:
        parse_tokens(f"a:read:{empty},b:read:san=x,c:owner:san=y,d:send:san=z,e:send:san=x")

    assert "entry 2 must" not in str(refusal.value)


def test_admin_scope_includes_events_only() -> None:
    (token,) = parse_tokens(entry("operator", "admin", "t"))

    assert token.caller.scopes == {"admin", "events"}


@pytest.mark.parametrize(
    ("granted", "name", "scopes", "expected"),
    [
        ("read+send+forward", "front-end", "read", Caller("front-end", frozenset({"read"}))),
        ("read+send+forward", "front-end", "read+admin", Caller("front-end", frozenset({"read"}))),
        ("admin+forward", "boss", "admin+events", Caller("boss", frozenset({"admin", "events"}))),
        ("read+forward", "front-end", "send", Caller("front-end", frozenset())),
        ("read+forward", "front-end", "", Caller("front-end", frozenset())),
        ("read+forward", "front-end", "owner+READ", Caller("front-end", frozenset())),
        ("read+forward", "", None, Caller("gateway", frozenset({"read", "forward"}))),
        ("read+send+admin", "front-end", "read", Caller("gateway", frozenset({"read", "send", "admin", "events"}))),
        ("send", "front-end", "send+admin", Caller("gateway", frozenset({"send"}))),
    ],
)
def test_forwarded_call_has_the_scopes_of_both_callers(
    granted: str, name: str, scopes: str | None, expected: Caller
) -> None:
    (token,) = parse_tokens(entry("gateway", granted, "t"))

    assert on_behalf_of(token.caller, name, scopes) == expected


@pytest.mark.parametrize("name", ["no name\n", "a,b", "-", "é", "a" * 101])
def test_invalid_forwarded_name_is_refused(name: str) -> None:
    with pytest.raises(Unauthenticated):
        on_behalf_of(Caller("gateway", SCOPES), name, "read")


@pytest.mark.parametrize(
    ("method", "scope"),
    [
        ("/topsmile.sms.v1.SmsService/SendSms", "send"),
        ("/topsmile.sms.v1.SmsService/GetSms", "read"),
        ("/topsmile.sms.v1.SmsService/CancelSms", "send"),
        ("/topsmile.sms.v1.SmsService/EstimateSms", "read"),
        ("/topsmile.payments.v1.PaymentService/WatchPayments", "read"),
        ("/topsmile.payments.v1.PaymentService/CreatePayment", "send"),
        ("/topsmile.payments.v1.PaymentAdminService/ExplainPayment", "admin"),
        ("/topsmile.sms.v1.SmsAdminService/ApplyEvents", "events"),
        ("/topsmile.email.v1.EmailAdminService/ApplyEvents", "events"),
        ("/topsmile.sms.v1.SmsAdminService/ApplyEventsNow", "admin"),
        ("/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo", "read"),
        ("/grpc.health.v1.Health/Check", None),
        ("/x.Y/Getaway", "send"),
    ],
)
def test_method_needs_the_scope_of_its_verb(method: str, scope: str | None) -> None:
    assert scope_of(method) == scope


def test_loopback_addresses_are_recognised() -> None:
    assert [is_loopback(host) for host in ("127.0.0.1", "127.8.8.8", "::1", "localhost")] == [True] * 4
    assert [is_loopback(host) for host in ("0.0.0.0", "::", "10.0.0.1", "db.internal", "")] == [False] * 5

from __future__ import annotations

import hashlib

import pytest

from services.chassis.authentication import (
    SCOPES,
    Caller,
    Doorkeeper,
    is_loopback,
    on_behalf_of,
    parse_tokens,
    scope_of,
)
from services.chassis.errors import Unauthenticated


def entry(name: str, scopes: str, token: str) -> str:
    return f"{name}:{scopes}:{hashlib.sha256(token.encode()).hexdigest()}"


def test_a_rotated_token_is_the_same_caller() -> None:
    door = Doorkeeper(parse_tokens(f"{entry('clinic', 'read', 'old')}, {entry('clinic', 'read', 'new')}"))

    assert door.recognise("Bearer old") == door.recognise("bearer new") == Caller("clinic", frozenset({"read"}))


@pytest.mark.parametrize(
    "authorization", ["", "Bearer", "Bearer ", "Bearer nope", "Basic right", "right", "Bearer ção"]
)
def test_no_other_credential_opens(authorization: str) -> None:
    door = Doorkeeper(parse_tokens(entry("clinic", "read", "right")))

    with pytest.raises(Unauthenticated):
        door.recognise(authorization)


def test_where_tokens_are_set_a_certificate_alone_is_not_enough() -> None:
    with pytest.raises(Unauthenticated):
        Doorkeeper(parse_tokens(entry("clinic", "read", "right"))).recognise("", ["gateway.clinic"])


def test_without_tokens_a_certificate_names_the_caller_and_loopback_is_local() -> None:
    assert Doorkeeper().recognise("", ["gateway.clinic", "other"]) == Caller("gateway.clinic", SCOPES)
    assert Doorkeeper().recognise("") == Caller("local", SCOPES)


@pytest.mark.parametrize(
    "text", ["", "a:read:zz", "a:write:" + "0" * 64, "a::" + "0" * 64, "a b:read:" + "0" * 64, "x"]
)
def test_a_malformed_entry_is_named_by_its_number_and_not_quoted(text: str) -> None:
    with pytest.raises(ValueError, match="entry 2 is not") as refusal:
        parse_tokens(f"{entry('ok', 'read+send', 't')},{text}")

    assert len(text) < 2 or text not in str(refusal.value)


def test_only_an_admin_speaks_for_others() -> None:
    assert on_behalf_of(Caller("gateway", frozenset({"send", "admin"})), "front-end") == "front-end"
    assert on_behalf_of(Caller("gateway", frozenset({"send"})), "front-end") == "gateway"
    assert on_behalf_of(Caller("gateway", SCOPES), "no name\n") == "gateway"


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
        ("/topsmile.sms.v1.SmsAdminService/ApplyEvents", "admin"),
        ("/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo", "read"),
        ("/grpc.health.v1.Health/Check", None),
        ("/x.Y/Getaway", "send"),
    ],
)
def test_each_method_needs_the_scope_of_its_verb(method: str, scope: str | None) -> None:
    assert scope_of(method) == scope


def test_loopback_is_recognised_and_nothing_else_is() -> None:
    assert [is_loopback(host) for host in ("127.0.0.1", "127.8.8.8", "::1", "localhost")] == [True] * 4
    assert [is_loopback(host) for host in ("0.0.0.0", "::", "10.0.0.1", "db.internal", "")] == [False] * 5

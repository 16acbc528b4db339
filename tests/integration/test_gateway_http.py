"""The gateway's own HTTP: what a clinic's front end sends, and every answer it may get."""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from yarl import URL

from services.chassis.errors import (
    InvalidRequest,
    NotSent,
    ProviderRejected,
    ServiceError,
    Throttled,
    Unavailable,
    Violation,
)
from services.chassis.violations import Rule
from tests.fakes.gateway import RunningGateway, running_gateway
from tests.fakes.payments_service import Payments

PATIENT = {"name": "Ana Souza", "email": "ana@example.com", "phone": "(11) 91234-5678"}
APPOINTMENT = {"start_time": "2026-03-12T14:30:00-03:00", "professional": "Dra. Beatriz Lima", "clinic": "Sorriso"}
CONFIRMATION = {"patient": PATIENT, "appointment": APPOINTMENT}
PAYMENT = {
    "amount": {"amount_minor": 15000, "currency": "BRL"},
    "appointment_id": "apt_1",
    "patient_id": "pat_1",
    "payer": {"name": "Ana Souza", "email": "ana@example.com"},
    "methods": ["PAYMENT_METHOD_CARD", "PIX"],
    "metadata": {"unit": "centro"},
}


@pytest.fixture
async def gateway(tmp_path: Path) -> AsyncIterator[RunningGateway]:
    async with running_gateway(f"sqlite:///{tmp_path}/gateway.db", working=False) as built:
        yield built


async def call(
    gateway: RunningGateway, path: str | URL, body: object = None, method: str = "POST", **headers: str
) -> tuple[int, Any, Any]:
    sent = {"Idempotency-Key": "key-1"} | {name.replace("_", "-"): value for name, value in headers.items()}
    data = body if isinstance(body, bytes) else None if body is None else json.dumps(body).encode()
    url = path if isinstance(path, URL) else f"http://{gateway.address}{path}"
    async with gateway.http.request(method, url, data=data, headers=sent) as answer:
        text = await answer.read()
        return answer.status, json.loads(text) if text else None, answer.headers


def wrong_fields(problem: Any) -> set[str]:
    return {error["field"] for error in problem["errors"]}


async def test_a_confirmation_goes_to_both_and_each_answers_for_itself(gateway: RunningGateway) -> None:
    status, answer, _ = await call(gateway, "/v1/appointments/apt_1/confirmation", CONFIRMATION)

    assert status == 200
    assert answer == {
        "email": {"status": "MESSAGE_STATUS_QUEUED", "email_id": "eml_1"},
        "sms": {"status": "MESSAGE_STATUS_QUEUED", "sms_id": "sms_1"},
    }
    mail, text = gateway.email.kept.requests["key-1"], gateway.sms.kept.requests["key-1"]
    assert (mail.recipient.address, mail.recipient.name) == ("ana@example.com", "Ana Souza")
    assert text.recipient == "(11) 91234-5678"
    for request in (mail, text):
        assert (request.appointment.appointment_id, request.appointment.patient_name) == ("apt_1", "Ana Souza")
        assert request.appointment.start_time.seconds == 1773336600


async def test_repeating_a_key_repeats_the_answer(gateway: RunningGateway) -> None:
    first = await call(gateway, "/v1/appointments/apt_1/confirmation", CONFIRMATION)
    assert (await call(gateway, "/v1/appointments/apt_1/confirmation", CONFIRMATION))[:2] == first[:2]


async def test_both_spellings_of_a_name_are_read(gateway: RunningGateway) -> None:
    body = {"patient": PATIENT, "appointment": {"startTime": "2026-03-12T17:30:00Z", "clinic_phone": "11"}}
    assert (await call(gateway, "/v1/appointments/apt_1/reminder", body | {"sendTime": "2026-03-11T12:00:00Z"}))[
        0
    ] == 200
    mail = gateway.email.kept.requests["key-1"]
    assert (mail.appointment.start_time.seconds, mail.send_time.seconds) == (1773336600, 1773230400)


async def test_a_reminder_may_be_asked_for_so_long_before_the_start(gateway: RunningGateway) -> None:
    status, answer, _ = await call(gateway, "/v1/appointments/apt_1/reminder", CONFIRMATION | {"before": "86400s"})
    assert (status, answer["email"]["status"]) == (200, "MESSAGE_STATUS_SCHEDULED")
    assert gateway.sms.kept.requests["key-1"].before.seconds == 86400


@pytest.mark.parametrize(("missing", "skipped", "sent"), [("email", "email", "sms"), ("phone", "sms", "email")])
async def test_a_leg_without_an_address_is_skipped(
    gateway: RunningGateway, missing: str, skipped: str, sent: str
) -> None:
    body = CONFIRMATION | {"patient": PATIENT | {missing: None}}
    status, answer, _ = await call(gateway, "/v1/appointments/apt_1/confirmation", body)
    assert status == 200
    assert answer[skipped] == {"status": "SKIPPED"}
    assert answer[sent]["status"] == "MESSAGE_STATUS_QUEUED"


async def test_a_patient_without_any_address_is_refused(gateway: RunningGateway) -> None:
    body = CONFIRMATION | {"patient": {"name": "Ana"}}
    status, problem, _ = await call(gateway, "/v1/appointments/apt_1/confirmation", body)
    assert (status, wrong_fields(problem)) == (422, {"patient"})


async def test_one_leg_s_failure_is_207_and_leaves_the_other(gateway: RunningGateway) -> None:
    gateway.sms.fail_with = Unavailable("full", reason="STORE_FULL")
    status, answer, _ = await call(gateway, "/v1/appointments/apt_1/confirmation", CONFIRMATION)
    assert status == 207
    assert answer["email"]["status"] == "MESSAGE_STATUS_QUEUED"
    assert (answer["sms"]["error"]["reason"], answer["sms"]["error"]["status"]) == ("STORE_FULL", 503)


async def test_none_took_it_and_all_refused_the_input_is_422_in_the_caller_s_words(gateway: RunningGateway) -> None:
    gateway.email.fail_with = InvalidRequest([Violation("recipient.address", "is not an email address")])
    gateway.sms.fail_with = InvalidRequest([Violation("recipient", "no"), Violation("appointment.start_time", "no")])
    status, answer, headers = await call(gateway, "/v1/appointments/apt_1/confirmation", CONFIRMATION)
    assert (status, "retry-after" in headers) == (422, False)
    assert wrong_fields(answer["email"]["error"]) == {"patient.email"}
    assert wrong_fields(answer["sms"]["error"]) == {"patient.phone", "appointment.start_time"}


async def test_none_took_it_and_trying_again_may_help_is_503_with_the_longest_wait(gateway: RunningGateway) -> None:
    gateway.email.fail_with = InvalidRequest([Violation("recipient.address", "is not an email address")])
    gateway.sms.fail_with = Throttled("later", retry_after=6.2)
    status, _, headers = await call(gateway, "/v1/appointments/apt_1/confirmation", CONFIRMATION)
    assert (status, headers["retry-after"]) == (503, "7")


async def test_a_service_that_is_down_holds_up_nobody_and_its_breaker_opens(gateway: RunningGateway) -> None:
    await gateway.sms.stop()
    answer: Any = None
    for number in range(6):
        key = {"Idempotency_Key": f"key-{number}"}
        status, answer, _ = await call(gateway, "/v1/appointments/apt_1/confirmation", CONFIRMATION, **key)
        assert (status, answer["email"]["status"]) == (207, "MESSAGE_STATUS_QUEUED")
    assert answer["sms"]["error"]["reason"] == "BREAKER_OPEN"
    await gateway.sms.start()  # the fixture stops it


async def test_the_legs_run_side_by_side(gateway: RunningGateway) -> None:
    gateway.email.hang = gateway.sms.hang = 0.4
    async with asyncio.timeout(0.75):
        assert (await call(gateway, "/v1/appointments/apt_1/confirmation", CONFIRMATION))[0] == 200


async def test_every_wrong_field_is_named_at_once(gateway: RunningGateway) -> None:
    body = {
        "patient": {"name": 1, "mail": "x", "email": "a@b.example"},
        "appointment": {
            "appointment_id": "apt_2",
            "start_time": "tomorrow",
            "end_time": 5,
            "clinic": ["x"],
            "notes": {"a": 1},
            "colour": "red",
        },
        "before": "a day",
        "idempotency_key": "x",
        "recipient": {},
        "extra": None,
    }
    status, problem, _ = await call(
        gateway, "/v1/appointments/apt_1/reminder", json.dumps(body).encode(), Idempotency_Key=""
    )
    assert status == 422
    assert wrong_fields(problem) == {
        "Idempotency-Key", "patient.name", "patient.mail", "appointment.appointment_id", "appointment.start_time",
        "appointment.end_time", "appointment.clinic", "appointment.notes", "appointment.colour", "before",
        "idempotency_key", "recipient", "extra",
    }  # fmt: skip
    assert gateway.email.calls.total() == gateway.sms.calls.total() == 0


async def test_a_moment_and_a_span_exclude_one_another(gateway: RunningGateway) -> None:
    body = CONFIRMATION | {"before": "60s", "send_time": "2026-03-12T14:30:00Z"}
    status, problem, _ = await call(gateway, "/v1/appointments/apt_1/reminder", body)
    assert (status, wrong_fields(problem)) == (422, {"send_time"})


@pytest.mark.parametrize(
    "body",
    [
        b'{"\\ud800":1}',
        b'{"patient_id":"\\udfff"}',
        b'{"metadata":{"\\uDABC":"x"}}',
        b'{"amount":{"amount_minor":1e400}}',
        b'{"amount":{"amount_minor":-1E999}}',
        b'{"amount":{"amount_minor":NaN}}',
        b'{"amount":{"amount_minor":' + b"9" * 5000 + b"}}",
        b'{"metadata":' + b'{"a":' * 101 + b"1" + b"}" * 102,
        b"[" * 100_000,
        b"\xff",
        b"",
    ],
)
async def test_what_is_no_json_is_400(gateway: RunningGateway, body: bytes) -> None:
    for path in ("/v1/payments", "/v1/appointments/apt_1/confirmation", "/v1/appointments/apt_1/reminder"):
        status, problem, _ = await call(gateway, path, body)
        assert (status, problem["reason"]) == (400, "MALFORMED_JSON")
        assert problem["message"]


@pytest.mark.parametrize(
    "body",
    [
        {"\0": 1},
        {"amount": {"amount_minor": -(2**70), "currency": "BRL"}},
        {"amount": {"amount_minor": 2**200, "currency": "BRL"}},
        {"amount": {"amount_minor": 1e300, "currency": "BRL"}},
        {"amount": {"amount_minor": 10, "currency": {"a": [[[[[[1]]]]]]}}},
        {"metadata": {"a": None}},
        {"methods": [[["PIX"]]]},
    ],
)
async def test_what_fits_no_field_is_422(gateway: RunningGateway, body: object) -> None:
    status, problem, _ = await call(gateway, "/v1/payments", body)
    assert (status, problem["reason"]) == (422, "INVALID_REQUEST")
    assert problem["errors"]


@pytest.mark.parametrize(
    "path", ["%00", "pay_%00", "pi_%ed%a0%80", "pay_%ff", "pay_" + "x" * 9000, "pay_%0d%0a", "%2e%2e"]
)
async def test_a_strange_id_is_nobody_s(gateway: RunningGateway, path: str) -> None:
    status, _, _ = await call(gateway, URL(f"http://{gateway.address}/v1/payments/{path}", encoded=True), method="GET")
    assert status == 404


@pytest.mark.parametrize("key", ["", " ", "\x80", "k" * 256, "\t"])
async def test_a_strange_key_is_named(gateway: RunningGateway, key: str) -> None:
    status, problem, _ = await call(gateway, "/v1/payments", PAYMENT, **{"Idempotency-Key": key})
    assert (status, wrong_fields(problem)) == (422, {"Idempotency-Key"})


async def test_what_is_no_object_is_422(gateway: RunningGateway) -> None:
    for body in (b"[]", b"null", b"1", b'"x"'):
        status, problem, _ = await call(gateway, "/v1/payments", body)
        assert (status, problem["reason"]) == (422, "INVALID_REQUEST")


async def test_a_payment_is_made_and_found_by_either_id(gateway: RunningGateway) -> None:
    status, made, headers = await call(gateway, "/v1/payments", PAYMENT)

    assert (status, headers["location"]) == (201, "/v1/payments/pay_1")
    assert made["payment"]["status"] == "PAYMENT_STATUS_AWAITING_METHOD"
    assert made["payment"]["amount"] == {"amount_minor": 15000, "currency": "BRL"}
    assert made["payment"]["client_secret"] == "pi_1_secret"
    message = gateway.payments.kept.requests["key-1"]
    assert (list(message.methods), dict(message.metadata)) == ([2, 3], {"unit": "centro"})
    for reference in ("pay_1", "pi_1"):
        assert (await call(gateway, f"/v1/payments/{reference}", method="GET"))[:2] == (200, made)


WRONG = {
    "of no field": ("colour", PAYMENT | {"colour": "blue"}, "UNKNOWN_FIELD", "Este campo não existe."),
    "of another type": (
        "amount.amount_minor", PAYMENT | {"amount": {"amount_minor": "x"}}, "WRONG_TYPE",
        "O formato deste campo está errado.",
    ),
    "of no choice": (
        "methods", PAYMENT | {"methods": ["OTHER"]}, "NOT_A_CHOICE",
        "Escolha uma das opções: AUTOMATIC, CARD, PIX, BOLETO.",
    ),
    "of a service's own rule": (
        "payer.tax_id", PAYMENT | {"payer": {"tax_id": "1"}}, "NOT_A_TAX_ID",
        "O CPF ou CNPJ não é válido. Confira os números.",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("field", "body", "reason", "words"), WRONG.values(), ids=WRONG.keys())
async def test_a_wrong_field_has_a_reason_and_words_for_people(
    gateway: RunningGateway, field: str, body: dict[str, Any], reason: str, words: str
) -> None:
    gateway.payments.fail_with = InvalidRequest([Rule.NOT_A_TAX_ID.at("payer.tax_id")])

    status, problem, _ = await call(gateway, "/v1/payments", body)

    (error,) = problem["errors"]
    assert (status, error["field"], error["reason"], error["localized_message"]) == (422, field, reason, words)
    assert error["message"]


async def test_an_unknown_payment_is_404(gateway: RunningGateway) -> None:
    for reference in ["pay_9", "pi_9", "x"]:
        status, problem, _ = await call(gateway, f"/v1/payments/{reference}", method="GET")
        assert (status, problem["reason"]) == (404, "NOT_FOUND")


async def test_an_amount_is_a_whole_number(gateway: RunningGateway) -> None:
    for amount in [1.5, "x", True, 2**31, 2**32 + 15000, -(2**31) - 1, 2**63, "1" * 30, [], {}]:
        body = PAYMENT | {"amount": {"amount_minor": amount, "currency": "BRL"}}
        status, problem, _ = await call(gateway, "/v1/payments", body)
        assert (status, wrong_fields(problem)) == (422, {"amount.amount_minor"})


async def test_the_same_key_for_another_payment_is_409_naming_the_field(gateway: RunningGateway) -> None:
    await call(gateway, "/v1/payments", PAYMENT)
    status, problem, _ = await call(gateway, "/v1/payments", PAYMENT | {"patient_id": "pat_2"})
    assert (status, problem["reason"]) == (409, "IDEMPOTENCY_KEY_REUSED")
    assert "patient_id" in wrong_fields(problem)


@pytest.mark.parametrize(
    ("error", "status", "wait"),
    [
        (Throttled("pace", retry_after=2.5), 429, "3"),
        (NotSent("stripe", None, "refused"), 503, "1"),
        (ProviderRejected("stripe", None, "no", reason="DECLINED", metadata={"decline_code": "x"}), 422, None),
    ],
)
async def test_a_service_s_errors_become_problems(
    gateway: RunningGateway, error: ServiceError, status: int, wait: str | None
) -> None:
    gateway.payments.fail_with = error
    got, problem, headers = await call(gateway, "/v1/payments", PAYMENT)
    assert (got, headers.get("retry-after"), problem["reason"]) == (status, wait, error.reason)
    assert problem["message"]  # pt-BR


async def test_a_service_s_bug_is_told_without_a_word_of_it(gateway: RunningGateway) -> None:
    gateway.email.kept.requests = None  # type: ignore[assignment]  # the fake's own bug
    status, answer, _ = await call(gateway, "/v1/appointments/apt_1/confirmation", CONFIRMATION)
    assert status == 207
    assert "NoneType" not in json.dumps(answer)


async def test_a_bug_of_the_gateway_is_a_bare_500_that_its_log_line_explains(gateway: RunningGateway) -> None:
    gateway.clients.payments.breaker = None  # type: ignore[assignment]  # a bug
    status, problem, headers = await call(gateway, "/v1/payments", PAYMENT)
    assert (status, problem["reason"]) == (500, "INTERNAL")
    assert problem["correlation_id"] == headers["x-correlation-id"]
    assert "NoneType" not in json.dumps(problem)


async def test_404_and_405_are_problems_too(gateway: RunningGateway) -> None:
    status, problem, _ = await call(gateway, "/v1/nothing", method="GET")
    assert (status, problem["reason"]) == (404, "ROUTE_NOT_FOUND")
    status, problem, headers = await call(gateway, "/v1/payments", method="DELETE")
    assert (status, problem["reason"], ", ".join(sorted(headers["allow"].split(", ")))) == (
        405,
        "METHOD_NOT_ALLOWED",
        "GET, HEAD, POST",
    )


async def test_the_story_goes_on_into_the_services_and_back(gateway: RunningGateway) -> None:
    parent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    metadata = {"X_Correlation_Id": "request-1", "traceparent": parent}
    _, _, headers = await call(gateway, "/v1/appointments/apt_1/confirmation", CONFIRMATION, **metadata)
    assert headers["x-correlation-id"] == "request-1"
    assert headers["traceparent"].startswith("00-0af7651916cd43dd8448eb211c80319c-")
    assert gateway.email.correlation_ids == gateway.sms.correlation_ids == ["request-1"]


def digest(name: str) -> str:
    return hashlib.sha256(f"{name}-secret".encode()).hexdigest()


def token(name: str, scopes: str) -> str:
    return f"{name}:{scopes}:{digest(name)}"


async def test_callers_are_known_by_their_tokens_and_held_to_their_scopes(tmp_path: Path) -> None:
    tokens = f"{token('front-desk', 'send')},{token('report', 'read')}"
    async with running_gateway(f"sqlite:///{tmp_path}/gateway.db", working=False, auth_tokens=tokens) as gateway:
        path = "/v1/appointments/apt_1/confirmation"
        status, problem, headers = await call(gateway, path, CONFIRMATION)
        assert (status, problem["reason"], headers["www-authenticate"]) == (401, "UNAUTHENTICATED", "Bearer")
        assert (await call(gateway, path, CONFIRMATION, Authorization="Bearer report-secret"))[0] == 403
        assert (await call(gateway, path, CONFIRMATION, Authorization="Bearer front-desk-secret"))[0] == 200
        assert gateway.email.callers == gateway.sms.callers == {"front-desk"}
        assert (await call(gateway, "/v1/status", method="GET", Authorization="Bearer report-secret"))[0] == 200
        assert await gateway.stripe(b'{"id":"evt_1","type":"x"}') == 200  # known by its signature


async def test_only_who_may_send_is_given_the_client_secret(payments: Payments, tmp_path: Path) -> None:
    """Against the real payments service, whose token for the gateway may do more than the gateway's caller."""
    names = {"desk": "read+send", "report": "read", "audit": "read+events", "follower": "read+forward"}
    tokens = ",".join(f"clinic:{scopes}:{digest(name)}" for name, scopes in names.items())
    async with running_gateway(
        f"sqlite:///{tmp_path}/gateway.db", working=False, auth_tokens=tokens, payments_target=payments.target
    ) as gateway:
        desk = {"Authorization": "Bearer desk-secret"}
        status, made, _ = await call(gateway, "/v1/payments", PAYMENT | {"methods": []}, **desk)
        assert (status, bool(made["payment"]["client_secret"])) == (201, True)
        for name in names:
            for reference in (made["payment"]["payment_id"], made["payment"]["stripe_payment_intent_id"]):
                metadata = {"Authorization": f"Bearer {name}-secret"}
                status, found, _ = await call(gateway, f"/v1/payments/{reference}", method="GET", **metadata)
                assert (status, bool(found["payment"]["client_secret"])) == (200, name == "desk")


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ("", [2, 1, 0]),
        ("?appointment_id=apt_1", [1]),
        ("?patientId=pat_1&status=AWAITING_METHOD&page_size=500", [2, 1, 0]),
        ("?created_before_time=2020-01-01T00:00:00Z", []),
    ],
)
async def test_payments_are_listed_over_http_for_a_token_that_may_read(
    payments: Payments, tmp_path: Path, query: str, expected: list[int]
) -> None:
    tokens = f"clinic:send:{digest('desk')},clinic:read:{digest('report')},other:read:{digest('other')}"
    async with running_gateway(
        f"sqlite:///{tmp_path}/gateway.db", working=False, auth_tokens=tokens, payments_target=payments.target
    ) as gateway:
        made = []
        for n in range(3):
            body = PAYMENT | {"methods": [], "appointment_id": f"apt_{n}"}
            keyed = {"Authorization": "Bearer desk-secret", "Idempotency-Key": f"key-{n}"}
            made.append((await call(gateway, "/v1/payments", body, **keyed))[1]["payment"]["payment_id"])
        found = {}
        for name in ("desk", "report", "other"):
            bearer = {"Authorization": f"Bearer {name}-secret"}
            found[name] = (await call(gateway, f"/v1/payments{query}", method="GET", **bearer))[:2]

    assert found["desk"][0] == 403
    assert [each["payment_id"] for each in found["report"][1]["payments"]] == [made[n] for n in expected]
    assert not any(each["client_secret"] for each in found["report"][1]["payments"])
    assert found["other"] == (200, {"payments": [], "next_page_token": ""})


@pytest.mark.parametrize(
    ("query", "wrong"),
    [
        ("status=PAID&page_size=x", {"status", "page_size"}),
        ("patient=1&created_from_time=today", {"patient", "created_from_time"}),
        ("page_size=1&page_size=2", {"page_size"}),
    ],
)
async def test_list_with_wrong_query_parameters_names_each(
    gateway: RunningGateway, query: str, wrong: set[str]
) -> None:
    status, problem, _ = await call(gateway, f"/v1/payments?{query}", method="GET")
    assert (status, wrong_fields(problem)) == (422, wrong)


@pytest.mark.parametrize(
    "header", [{"Forwarded": "for=1.2.3.4"}, {"X-Forwarded-For": "1.2.3.4"}, {"Via": "1.1 nginx"}, {"X-Real-IP": "::1"}]
)
async def test_what_a_proxy_forwards_is_served_to_nobody_without_a_token(
    gateway: RunningGateway, tmp_path: Path, header: dict[str, str]
) -> None:
    for path, method in (("/v1/payments/pay_1", "GET"), ("/v1/payments", "POST"), ("/v1/status", "GET")):
        status, problem, _ = await call(gateway, path, PAYMENT, method, **header)
        assert (status, problem["reason"]) == (403, "PERMISSION_DENIED")
    assert gateway.payments.calls["CreatePayment"] == 0
    async with running_gateway(
        f"sqlite:///{tmp_path}/other.db", working=False, auth_tokens=token("front-desk", "read"),
        public_url="https://hooks.example.com",
    ) as behind:  # fmt: skip
        metadata = {"Authorization": "Bearer front-desk-secret"}
        assert (await call(behind, "/v1/status", method="GET", **header, **metadata))[0] == 200


async def test_a_caller_above_its_limit_is_429(tmp_path: Path) -> None:
    async with running_gateway(f"sqlite:///{tmp_path}/gateway.db", working=False, caller_limit="2/minute") as gateway:
        for _ in range(2):
            assert (await call(gateway, "/v1/payments/pay_9", method="GET"))[0] == 404
        status, problem, headers = await call(gateway, "/v1/payments/pay_9", method="GET")
        assert (status, problem["reason"]) == (429, "THROTTLED")
        assert int(headers["retry-after"]) >= 1


async def test_status_tells_of_each_service_and_its_breaker(gateway: RunningGateway) -> None:
    await gateway.sms.stop()
    gateway.clients.email.breaker.force_open()
    status, answer, _ = await call(gateway, "/v1/status", method="GET")
    assert status == 200
    assert {name: answer[name]["breaker"] for name in ("payments", "email", "sms")} == {
        "payments": "CLOSED", "email": "OPEN", "sms": "CLOSED",
    }  # fmt: skip
    silent = {"status": "UNREACHABLE", "reasons": ["DETAILS_UNREACHABLE"]}
    assert answer["sms"] == {**silent, "breaker": "CLOSED", "providers": {}, "queues": {}}
    await gateway.sms.start()


async def test_no_answer_of_a_service_within_the_time_is_503(tmp_path: Path) -> None:
    async with running_gateway(f"sqlite:///{tmp_path}/gateway.db", working=False, seconds=0.5) as gateway:
        gateway.payments.hang = 5
        async with asyncio.timeout(2):
            status, problem, _ = await call(gateway, "/v1/payments", PAYMENT)
        assert (status, problem["reason"]) == (503, "OUTCOME_UNKNOWN")
        assert gateway.payments.calls["CreatePayment"] == 1

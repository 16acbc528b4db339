"""Create payments over the wire, between a caller and the sandbox's Stripe, on both databases."""

from __future__ import annotations

import asyncio
import sqlite3
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration
from prometheus_client import REGISTRY

from sandbox.intent_fields import blank_intent
from sandbox.state import put
from services.chassis.errors import (
    AlreadyExists,
    CredentialsRefused,
    InProgress,
    InvalidRequest,
    NotFound,
    NotSent,
    OutcomeUnknown,
    ProviderRefusedInput,
    ProviderRejected,
    Throttled,
    Unavailable,
)
from services.chassis.queue import operations
from services.payments.store import QUEUE
from tests.fakes.payments_service import (
    Payments,
    address,
    attempt,
    eventually,
    payer,
    payment_request,
    payments_service,
    refusal,
    status,
)
from tests.fakes.sandbox_bench import Bench
from topsmile.common.v1 import common_pb2 as common
from topsmile.payments.v1 import payments_pb2 as pb

CREATE = "POST /v1/payment_intents"
DAY = 86_400_000
LOCKED = {"status": 429, "code": "lock_timeout"}


async def accepted(bench: Bench) -> list[dict[str, Any]]:
    """The payments that Stripe made."""
    return [entry for entry in await bench.ledger() if entry["outcome"] == "accepted" and entry["method"] == "POST"]


async def test_new_payment_holds_what_its_payer_needs(payments: Payments, bench: Bench) -> None:
    payment = await payments.create()
    (made,) = await accepted(bench)

    assert (status(payment), attempt(payment)) == ("AWAITING_METHOD", "DONE")
    assert payment.client_secret.startswith(payment.stripe_payment_intent_id)
    assert payment.payer.phone == "+5511912345678"
    assert payment.payer.tax_id == "52998224725"
    assert made["idempotency_key"] == f"{payment.payment_id}-create"
    assert made["request"]["metadata"] == {"clinic": "Clínica São José", "topsmile_payment_id": payment.payment_id}
    assert await payments.get(payment.payment_id) == payment


async def test_single_pix_returns_its_code(payments: Payments) -> None:
    payment = await payments.create(methods=["PAYMENT_METHOD_PIX"])

    assert status(payment) == "AWAITING_CUSTOMER"
    assert payment.method == common.PAYMENT_METHOD_PIX
    assert payment.pix.text.startswith("000201")
    assert payment.pix.expires_time == payment.expires_time
    assert payment.client_secret == ""


async def test_single_boleto_returns_its_line(payments: Payments) -> None:
    payment = await payments.create(methods=["PAYMENT_METHOD_BOLETO"])

    assert payment.method == common.PAYMENT_METHOD_BOLETO
    assert len(payment.boleto.line) == 47
    assert payment.boleto.url


@pytest.mark.parametrize(
    ("name", "place", "sent"),
    [
        ("Ana Conceição", {"city": "São Paulo"}, ("Ana Conceicao", "Rua Sao Joao, 5", "Sao Paulo")),
        (
            "Łukasz Müller",
            {"line1": "Praça nº 5 \N{EN DASH} Bloco 2ª"},
            ("Lukasz Muller", "Praca no 5 - Bloco 2a", "Sao Paulo"),
        ),
        (
            "Þór Nguyễn",
            {"city": "Açaí d\N{RIGHT SINGLE QUOTATION MARK}Água"},
            ("Thor Nguyen", "Rua Sao Joao, 5", "Acai d'Agua"),
        ),
    ],
)
async def test_boleto_sends_name_and_address_in_ascii_and_keeps_them_as_given(
    tmp_path: Path, bench: Bench, name: str, place: dict[str, str], sent: tuple[str, str, str]
) -> None:
    async with payments_service(f"sqlite:///{tmp_path}/p.db", bench.url) as payments:
        boleto = payer(name=name, address=address(**place, state="sp", postal_code="01.310100"))
        payment = await payments.create(methods=["PAYMENT_METHOD_BOLETO"], payer=boleto)
    billing = (await accepted(bench))[0]["request"]["payment_method_data"]["billing_details"]

    assert (billing["name"], billing["address"]["line1"], billing["address"]["city"]) == sent
    assert (billing["address"]["state"], billing["address"]["country"]) == ("SP", "BR")
    assert (payment.payer.name, payment.payer.address.postal_code) == (name, "01310-100")
    for key, value in place.items():
        assert getattr(payment.payer.address, key) == value


@pytest.mark.parametrize(
    ("method", "given", "sent"),
    [
        ("PIX", None, {"pix": {"expires_after_seconds": "86400"}}),
        ("PIX", 60, {"pix": {"expires_after_seconds": "60"}}),
        ("PIX", 1_209_600, {"pix": {"expires_after_seconds": "1209600"}}),
        ("BOLETO", None, {"boleto": {"expires_after_days": "3"}}),
        ("BOLETO", 10 * 86_400, {"boleto": {"expires_after_days": "10"}}),
    ],
)
async def test_expiry_of_a_code_or_voucher_is_always_sent(
    tmp_path: Path, bench: Bench, method: str, given: int | None, sent: dict[str, dict[str, str]]
) -> None:
    more: dict[str, Any] = {} if given is None else {"expiry": Duration(seconds=given)}
    async with payments_service(f"sqlite:///{tmp_path}/p.db", bench.url) as payments:
        payment = await payments.create(methods=[f"PAYMENT_METHOD_{method}"], **more)
        again = await payments.create(methods=[f"PAYMENT_METHOD_{method}"], **more)
        error = await refusal(
            payments.create(methods=[f"PAYMENT_METHOD_{method}"], expiry=Duration(seconds=11 * 86_400))
        )
    made = (await accepted(bench))[0]

    assert made["request"]["payment_method_options"] == sent
    if method == "PIX":
        life = payment.expires_time.ToSeconds() - payment.create_time.ToSeconds()
        assert abs(life - (given or 86_400)) < 5
    assert again == payment
    assert [violation.field for violation in error.violations] == ["expiry"]


async def test_concurrent_calls_with_two_keys_open_one_payment(payments: Payments, bench: Bench) -> None:
    clicks = await asyncio.gather(payments.create("left"), payments.create("right"), return_exceptions=True)
    opened = [payment for payment in clicks if isinstance(payment, pb.Payment)]
    again = await refusal(payments.create("third"))

    assert len(opened) == 1
    assert len(await accepted(bench)) == 1
    assert isinstance(again, AlreadyExists)
    assert (again.reason, again.metadata) == ("PAYMENT_OPEN", {"payment_id": opened[0].payment_id})


async def test_second_payment_with_allow_another_is_opened(payments: Payments, bench: Bench) -> None:
    first = await payments.create("left")
    second = await payments.create("right", allow_another=True)

    assert first.payment_id != second.payment_id
    assert len(await accepted(bench)) == 2


async def test_closed_payment_frees_its_appointment(payments: Payments, bench: Bench) -> None:
    first = await payments.create("left")
    await bench.stripe("POST", f"/v1/payment_intents/{first.stripe_payment_intent_id}/cancel")
    await payments.apply(await newest_event(bench))

    assert status(await payments.get(first.payment_id)) == "CANCELED"
    assert (await payments.create("right")).payment_id != first.payment_id


async def test_repeated_key_returns_the_payment_in_its_current_status(payments: Payments, bench: Bench) -> None:
    first = await payments.create()
    await bench.ask("POST", f"/_sandbox/payments/{first.payment_id}/pay")
    await payments.apply(await newest_event(bench))
    again = await payments.create()

    assert (again.payment_id, status(again)) == (first.payment_id, "SUCCEEDED")
    assert again.amount_captured.amount_minor == 15000
    assert len(await accepted(bench)) == 1


async def test_same_key_with_another_amount_names_the_field(payments: Payments, bench: Bench) -> None:
    await payments.create()
    error = await refusal(payments.create(amount=15001))

    assert (type(error), error.reason) == (AlreadyExists, "IDEMPOTENCY_KEY_REUSED")
    assert [violation.field for violation in error.violations] == ["amount.amount_minor"]
    assert len(await accepted(bench)) == 1


async def test_explicit_default_equals_the_omitted_field(payments: Payments) -> None:
    first = await payments.create()
    same = payer(
        name=" Ana Souza",
        phone="+55 (11) 91234-5678",
        tax_id="52998224725",
        locale="pt-BR",
        address=address(country="BR", postal_code="01310100"),
    )
    again = await payments.create(capture=pb.CAPTURE_METHOD_AUTOMATIC, methods=["PAYMENT_METHOD_AUTOMATIC"], payer=same)

    assert again == first


async def test_same_key_during_the_first_call_is_in_progress(payments: Payments, bench: Bench) -> None:
    await bench.fault(provider="stripe", kind="delay", path=CREATE, seconds=1.0)
    first = asyncio.create_task(payments.create())
    await asyncio.sleep(0.3)
    error = await refusal(payments.create())

    assert isinstance(error, InProgress)
    assert (error.reason, error.retry_after) == ("IN_PROGRESS", 1.0)
    assert (await first).payment_id == (await payments.create()).payment_id
    assert len(await accepted(bench)) == 1


async def test_lost_response_is_requested_again_with_the_same_key(payments: Payments, bench: Bench) -> None:
    await bench.fault(provider="stripe", kind="truncate", path=CREATE, times=2)
    payment = await payments.create()

    assert status(payment) == "AWAITING_METHOD"
    assert [entry["outcome"] for entry in await bench.ledger()] == ["accepted", "replayed", "replayed"]


@pytest.mark.parametrize("busy", [{"status": 409}, {"status": 409, "code": "idempotency_key_in_use"}, LOCKED])
@pytest.mark.parametrize("times", [1, 4])
async def test_create_payment_while_stripe_is_busy_is_retried_within_the_deadline(
    tmp_path: Path, bench: Bench, busy: dict[str, Any], times: int
) -> None:
    await bench.fault(provider="stripe", kind="status", path=CREATE, times=times, **busy)
    async with payments_service(f"sqlite:///{tmp_path}/p.db", bench.url) as payments:
        payment = await payments.create()

    assert status(payment) == "AWAITING_METHOD"
    assert len(await accepted(bench)) == 1


@pytest.mark.parametrize("busy", [{"status": 409}, LOCKED, {**LOCKED, "retry_after": 3}])
async def test_create_payment_while_stripe_stays_busy_returns_a_retry_delay(
    tmp_path: Path, bench: Bench, busy: dict[str, Any]
) -> None:
    await bench.fault(provider="stripe", kind="status", path=CREATE, times=0, **busy)
    async with payments_service(f"sqlite:///{tmp_path}/p.db", bench.url) as payments:
        error = await refusal(payments.stub.CreatePayment(payment_request(), timeout=2.5))

    assert (error.code.name, error.reason) == ("ABORTED", "PROVIDER_BUSY")
    assert error.retry_after == busy.get("retry_after", 1.0)


@pytest.mark.parametrize("retry_after", ["31536000", "Fri, 01 Jan 2100 00:00:00 GMT", "864000.5"])
async def test_stripe_throttle_with_a_huge_retry_after_pauses_ten_minutes_at_most(
    database_url: str, bench: Bench, retry_after: str
) -> None:
    await bench.fault(provider="stripe", kind="throttle", path=CREATE, retry_after=retry_after)
    async with payments_service(database_url, bench.url) as payments:
        error = await refusal(payments.create())
        blocked = await refusal(payments.create("key-2", appointment_id="apt-2"))
        assert isinstance(error, Throttled)
        assert isinstance(blocked, Throttled)
        assert blocked.retry_after is not None
        assert 590 < blocked.retry_after <= 600
        payments.database.offset_ms = 601_000
        assert status(await payments.create()) == "AWAITING_METHOD"


async def alone(payments: Payments) -> str:
    """The id of the only payment there is."""
    return (await payments.changes(1))[0].change.payment.payment_id


@pytest.mark.parametrize(
    "failure", [{"status": 500}, {"status": 500, "code": "api_error"}, {"status": 500, "stored": False, "times": 3}]
)
async def test_replayed_failure_of_one_key_does_not_open_the_breaker(
    tmp_path: Path, bench: Bench, failure: dict[str, Any]
) -> None:
    await bench.fault(provider="stripe", kind="status", path=CREATE, **failure)
    async with payments_service(f"sqlite:///{tmp_path}/p.db", bench.url) as payments:
        for _ in range(6 if failure.get("stored", True) else 1):
            error = await refusal(payments.create())
            assert error.reason in ("OUTCOME_UNKNOWN", "IN_PROGRESS")
        assert payments.parts.breaker.state == "CLOSED"
        for n in range(3):
            assert status(await payments.create(f"other-{n}", appointment_id=f"other-{n}")) == "AWAITING_METHOD"


@pytest.mark.parametrize("failures", [5, 7])
async def test_stripe_failures_of_many_keys_open_the_breaker(tmp_path: Path, bench: Bench, failures: int) -> None:
    await bench.fault(provider="stripe", kind="status", status=500, stored=False, times=0)
    async with payments_service(f"sqlite:///{tmp_path}/p.db", bench.url) as payments:
        for n in range(failures):
            await refusal(payments.create(f"key-{n}", appointment_id=f"apt-{n}"))
        assert payments.parts.breaker.state == "OPEN"


async def test_replayed_failure_as_trial_call_does_not_reopen_the_breaker(tmp_path: Path, bench: Bench) -> None:
    await bench.fault(provider="stripe", kind="status", status=500, path=CREATE)
    async with payments_service(f"sqlite:///{tmp_path}/p.db", bench.url) as payments:
        await refusal(payments.create())
        payments.parts.breaker.force_open()
        payments.parts.breaker.release()
        await refusal(payments.create())  # its own answers tell nothing, its reading does
        assert payments.parts.breaker.state == "CLOSED"


async def test_payment_made_before_a_stored_failure_is_found_by_reading(payments: Payments, bench: Bench) -> None:
    await bench.fault(provider="stripe", kind="status", status=500, path=CREATE)
    await refusal(payments.create())
    payment_id = await alone(payments)
    form: dict[str, Any] = {"amount": 15000, "currency": "brl", "metadata[topsmile_payment_id]": payment_id}
    made = (await bench.stripe("POST", "/v1/payment_intents", **form)).json
    payment = await payments.until(payment_id, "AWAITING_METHOD")

    assert (payment.stripe_payment_intent_id, payment.client_secret) == (made["id"], made["client_secret"])


async def test_stored_failure_is_resolved_within_minutes(payments: Payments, bench: Bench) -> None:
    await bench.fault(provider="stripe", kind="status", status=500, path=CREATE)
    error = await refusal(payments.create())
    payment_id = await alone(payments)
    assert (error.reason, status(await payments.get(payment_id))) == ("OUTCOME_UNKNOWN", "UNKNOWN")
    payments.database.offset_ms = 150_000
    failed = await payments.until(payment_id, "FAILED")
    assert attempt(failed) == "DECLINED"
    settled = await refusal(payments.create())

    assert isinstance(settled, ProviderRejected)
    assert await accepted(bench) == []
    assert status(await payments.create("key-2")) == "AWAITING_METHOD"


async def test_stored_failure_is_not_resolved_while_stripe_cannot_be_read(payments: Payments, bench: Bench) -> None:
    await bench.fault(provider="stripe", kind="status", status=500, path=CREATE)
    await bench.fault(provider="stripe", kind="status", status=503, path="GET", times=0)
    await refusal(payments.create())
    payments.database.offset_ms = 150_000
    await asyncio.sleep(1.5)
    error = await refusal(payments.create())

    assert error.reason in ("OUTCOME_UNKNOWN", "IN_PROGRESS")
    assert status(await payments.get(await alone(payments))) == "UNKNOWN"


@pytest.mark.parametrize("unknown", ["requires_reauthorization", "requires_source", "on_hold"])
async def test_create_payment_answered_with_an_unknown_status_is_kept_and_read_again(
    tmp_path: Path, bench: Bench, unknown: str
) -> None:
    labels = {"service": "stripe", "what": "payment_intent_status"}
    before = REGISTRY.get_sample_value("topsmile_provider_unexpected_total", labels) or 0.0
    await bench.fault(provider="stripe", kind="alter", path=CREATE, fields={"status": unknown}, times=6)
    async with payments_service(f"sqlite:///{tmp_path}/p.db", bench.url) as payments:
        made = [await payments.create(f"key-{n}", appointment_id=f"apt-{n}") for n in range(6)]
        assert REGISTRY.get_sample_value("topsmile_provider_unexpected_total", labels) == before + 6
        assert payments.parts.breaker.state == "CLOSED"
        for payment in made:
            assert payment.stripe_payment_intent_id
            await payments.until(payment.payment_id, "AWAITING_METHOD")


@pytest.mark.parametrize("refused", [{"status": 403}, {"status": 400}, {"status": 402}, {"status": 410}])
async def test_one_refused_reading_does_not_pause_creation(
    tmp_path: Path, bench: Bench, refused: dict[str, Any]
) -> None:
    async with payments_service(f"sqlite:///{tmp_path}/p.db", bench.url) as payments:
        first = await payments.create()
        await bench.fault(provider="stripe", kind="status", path="GET", times=0, **refused)
        thin = {
            "id": "evt_thin",
            "object": "v2.core.event",
            "type": "v1.payment_intent.succeeded",
            "livemode": False,
            "related_object": {"id": first.stripe_payment_intent_id, "type": "payment_intent"},
        }
        assert await payments.apply(thin) == ["APPLIED"]
        await eventually(lambda: was_read(bench))
        await asyncio.sleep(0.3)
        assert (await payments.database.read(operations.census, QUEUE))["paused"] == ""
        assert status(await payments.create("key-2", appointment_id="apt-2")) == "AWAITING_METHOD"
        assert status(await payments.get(first.payment_id)) == "AWAITING_METHOD"


async def was_read(bench: Bench) -> bool:
    return any(entry["method"] == "GET" for entry in await bench.ledger())


@pytest.mark.parametrize("later", [0, 4 * 3600], ids=["first claim", "a claim hours later"])
async def test_lost_payment_is_found_among_five_thousand_others(tmp_path: Path, bench: Bench, later: int) -> None:
    async with payments_service(f"sqlite:///{tmp_path}/p.db", bench.url) as payments:
        await bench.fault(provider="stripe", kind="reset", path=CREATE, times=0)
        await refusal(payments.create())
        payment_id = await alone(payments)
        if later:
            payments.database.offset_ms = later * 1000
            tries = len(await bench.ledger())
            await eventually(lambda: more_than(bench, tries + 2))
        await bench.ask("DELETE", "/_sandbox/faults")
        now = int(time.time()) + later
        fill(tmp_path / "sandbox.db", payment_id, now, others=5001)
        payments.database.offset_ms = DAY
        payment = await payments.until(payment_id, "AWAITING_METHOD")
        reads = [
            entry
            for entry in await bench.ledger()
            if entry["path"] == "/v1/payment_intents" and entry["method"] == "GET"
        ]

    assert payment.stripe_payment_intent_id == "pi_lost"
    assert len(reads) <= 20


async def more_than(bench: Bench, count: int) -> bool:
    return len(await bench.ledger()) > count


def fill(database: Path, payment_id: str, made: int, others: int) -> None:
    """Put a lost payment into the sandbox, two minutes' worth of others around it and a day's worth behind it."""
    rows = [("pi_lost", payment_id, made)]
    rows += [(f"pi_{n}", f"pay_{n}", made - 60 + n // 4 if n < 500 else made + 60 + n * 15) for n in range(others)]
    with closing(sqlite3.connect(database)) as db, db:
        for id, label, created in sorted(rows, key=lambda row: row[2]):
            intent = blank_intent() | {
                "id": id, "amount": 15000, "currency": "brl", "created": created, "client_secret": f"{id}_secret",
                "metadata": {"topsmile_payment_id": label}, "status": "requires_payment_method",
                "payment_method_types": ["card"],
            }  # fmt: skip
            put(db, "payment_intent", intent, id=id, label=label)


async def test_call_with_a_short_deadline_ends_in_time_and_the_queue_continues(
    payments: Payments, bench: Bench
) -> None:
    await bench.fault(provider="stripe", kind="delay", path=CREATE, seconds=3)
    error = await refusal(payments.stub.CreatePayment(payment_request(), timeout=1.5))

    assert isinstance(error, OutcomeUnknown)
    await eventually(lambda: settled(payments))
    assert (await payments.create()).stripe_payment_intent_id == (await accepted(bench))[0]["object_id"]
    assert len(await accepted(bench)) == 1


async def test_concurrent_calls_with_one_key_make_one_payment(payments: Payments, bench: Bench) -> None:
    for n in range(5):
        call = payment_request(f"twin-{n}", appointment_id=f"apt-{n}")
        answers = await asyncio.gather(*(payments.stub.CreatePayment(call) for _ in range(8)), return_exceptions=True)

        codes = {answer.code().name for answer in answers if isinstance(answer, grpc.aio.AioRpcError)}
        assert codes <= {"ABORTED"}
        assert any(not isinstance(answer, BaseException) for answer in answers)
    assert len(await accepted(bench)) == 5


async def settled(payments: Payments) -> bool:
    return (await payments.changes(3))[2].change.payment.stripe_payment_intent_id != ""


async def test_unknown_outcome_is_reported_and_then_resolved(payments: Payments, bench: Bench) -> None:
    await bench.fault(provider="stripe", kind="reset", after=True, path=CREATE, times=3)
    error = await refusal(payments.create())
    (first,) = await payments.changes(1)

    assert isinstance(error, OutcomeUnknown)
    assert attempt(await payments.get(first.change.payment.payment_id)) == "UNKNOWN"
    assert status(await payments.until(first.change.payment.payment_id, "AWAITING_METHOD")) == "AWAITING_METHOD"
    assert len(await accepted(bench)) == 1


async def test_repeated_key_does_not_wait_for_the_backoff(payments: Payments, bench: Bench) -> None:
    await bench.fault(provider="stripe", kind="reset", path=CREATE, times=3)
    await refusal(payments.create())

    assert status(await payments.create()) == "AWAITING_METHOD"


async def test_request_that_never_reached_stripe_is_not_sent(database_url: str) -> None:
    async with payments_service(database_url, "http://127.0.0.1:9") as payments:
        error = await refusal(payments.create())
        first, second = await payments.changes(2)

        assert isinstance(error, NotSent)
        assert status(second.change.payment) == "CREATING"
        assert (attempt(first.change.payment), attempt(second.change.payment)) == ("UNSPECIFIED", "NOT_SENT")


async def test_declined_key_returns_the_same_decline(payments: Payments, bench: Bench) -> None:
    await bench.fault(provider="stripe", kind="status", status=402, path=CREATE)
    errors = [await refusal(payments.create()) for _ in range(2)]
    for error in errors:
        assert isinstance(error, ProviderRejected)
        assert error.reason == "DECLINED"
        assert error.metadata["decline_code"] == "card_declined"
    payment = await payments.get(errors[1].metadata["payment_id"])

    assert errors[0].metadata == errors[1].metadata
    assert (status(payment), attempt(payment)) == ("FAILED", "DECLINED")
    assert payment.decline.message
    assert len(await bench.ledger()) == 1
    assert status(await payments.create("key-2")) == "AWAITING_METHOD"


async def test_parameter_refused_by_stripe_is_named_by_our_field(payments: Payments) -> None:
    errors = [await refusal(payments.create(amount=10)) for _ in range(2)]
    for error in errors:
        assert isinstance(error, ProviderRefusedInput)
        assert [violation.field for violation in error.violations] == ["amount.amount_minor"]


async def test_refused_api_key_pauses_the_queue_and_loses_nothing(database_url: str, bench: Bench) -> None:
    async with payments_service(database_url, bench.url, key="sk_test_revoked") as payments:
        error = await refusal(payments.create())
        (first,) = await payments.changes(1)
        blocked = await refusal(payments.create("key-2", appointment_id="apt-2"))
        census = await payments.database.read(operations.census, QUEUE)

        assert isinstance(error, CredentialsRefused)
        assert isinstance(blocked, Unavailable)
        assert error.reason == blocked.reason == census["paused"] == "PROVIDER_CREDENTIALS"
        assert status(await payments.get(first.change.payment.payment_id)) == "CREATING"
    async with payments_service(database_url, bench.url) as payments:
        payments.database.offset_ms = 61_000
        await payments.until(first.change.payment.payment_id, "AWAITING_METHOD")
        assert status(await payments.create("key-2", appointment_id="apt-2")) == "AWAITING_METHOD"


async def test_rate_limit_refuses_before_anything_is_stored(database_url: str, bench: Bench) -> None:
    async with payments_service(database_url, bench.url, stripe_per_second=1.0) as payments:
        await payments.create()
        error = await refusal(payments.create("key-2", appointment_id="apt-2"))

        assert isinstance(error, Throttled)
        assert error.retry_after is not None
        assert 0 < error.retry_after <= 1
        assert len(await payments.changes(2)) == 2
        assert len(await accepted(bench)) == 1


async def test_payment_older_than_its_key_is_read_and_never_sent_again(payments: Payments, bench: Bench) -> None:
    await bench.fault(provider="stripe", kind="reset", after=True, path=CREATE, times=0)
    await refusal(payments.create())
    await bench.ask("DELETE", "/_sandbox/faults")
    posts = len([entry for entry in await bench.ledger() if entry["method"] == "POST"])
    (first,) = await payments.changes(1)
    payments.database.offset_ms = DAY
    payment = await payments.until(first.change.payment.payment_id, "AWAITING_METHOD")

    assert await payments.create() == payment
    assert len([entry for entry in await bench.ledger() if entry["method"] == "POST"]) == posts


async def test_payment_older_than_its_key_that_never_arrived_is_refused(payments: Payments, bench: Bench) -> None:
    await bench.fault(provider="stripe", kind="reset", path=CREATE, times=0)
    await refusal(payments.create())
    (first,) = await payments.changes(1)
    payments.database.offset_ms = DAY
    failed = await payments.until(first.change.payment.payment_id, "FAILED")
    error = await refusal(payments.create())

    assert isinstance(error, ProviderRejected)
    assert error.metadata == {"payment_id": failed.payment_id}
    assert attempt(failed) == "NOT_SENT"


WRONG: dict[str, tuple[dict[str, Any], set[str]]] = {
    "nothing given": (
        {"amount": 0, "currency": "", "appointment_id": "", "patient_id": ""},
        {"amount.amount_minor", "amount.currency", "appointment_id", "patient_id"},
    ),
    "nine digits": ({"amount": 100_000_000}, {"amount.amount_minor"}),
    "a third decimal of dinars": ({"amount": 1001, "currency": "KWD"}, {"amount.amount_minor"}),
    "a part of a krona": ({"amount": 150, "currency": "ISK"}, {"amount.amount_minor"}),
    "lower case": ({"currency": "brl"}, {"amount.currency"}),
    "pix in dollars, later": (
        {"currency": "USD", "methods": ["PAYMENT_METHOD_PIX"], "capture": pb.CAPTURE_METHOD_MANUAL},
        {"amount.currency", "capture"},
    ),
    "boleto of nobody": ({"methods": ["PAYMENT_METHOD_BOLETO"], "payer": None}, {"payer"}),
    "boleto of somebody": (
        {"methods": ["PAYMENT_METHOD_BOLETO"], "payer": pb.Payer()},
        {"payer.name", "payer.email", "payer.tax_id", "payer.address"},
    ),
    "boleto of an empty address": (
        {"methods": ["PAYMENT_METHOD_BOLETO"], "payer": payer(address=pb.Address())},
        {f"payer.address.{name}" for name in ("line1", "city", "state", "postal_code")},
    ),
    "boleto to elsewhere": (
        {"methods": ["PAYMENT_METHOD_BOLETO"], "payer": payer(address=address(country="PT"))},
        {"payer.address.country"},
    ),
    "boleto in other scripts": (
        {
            "methods": ["PAYMENT_METHOD_BOLETO"],
            "payer": payer(name="山田太郎", address=address(city="Москва", line1="Rua Ω")),
        },
        {"payer.name", "payer.address.city", "payer.address.line1"},
    ),
    "an address that is none": (
        {"payer": payer(address=address(state="XX", postal_code="0131", country="BR"))},
        {"payer.address.state", "payer.address.postal_code"},
    ),
    "a country that is none": ({"payer": payer(address=address(country="br"))}, {"payer.address.country"}),
    "an expiry of nothing": ({"expiry": Duration(seconds=3600)}, {"expiry"}),
    "an expiry too short": ({"methods": ["PAYMENT_METHOD_PIX"], "expiry": Duration(seconds=59)}, {"expiry"}),
    "an expiry too long": ({"methods": ["PAYMENT_METHOD_PIX"], "expiry": Duration(seconds=1_209_601)}, {"expiry"}),
    "an expiry in parts of a second": (
        {"methods": ["PAYMENT_METHOD_PIX"], "expiry": Duration(seconds=90, nanos=500_000_000)},
        {"expiry"},
    ),
    "an expiry in parts of a day": (
        {"methods": ["PAYMENT_METHOD_BOLETO"], "expiry": Duration(seconds=90_000)},
        {"expiry"},
    ),
    "an expiry of 61 days": (
        {"methods": ["PAYMENT_METHOD_BOLETO"], "expiry": Duration(seconds=61 * 86_400)},
        {"expiry"},
    ),
    "a negative expiry": ({"methods": ["PAYMENT_METHOD_PIX"], "expiry": Duration(seconds=-1)}, {"expiry"}),
    "a currency of nobody": ({"currency": "BRX"}, {"amount.currency"}),
    "a currency of the past": ({"currency": "HRK"}, {"amount.currency"}),
    "a currency of metal": ({"currency": "XAU"}, {"amount.currency"}),
    "a currency of no country": ({"currency": "BTC"}, {"amount.currency"}),
    "a payer who is not one": (
        {"payer": pb.Payer(email="ana", phone="12", tax_id="529.982.247-26", locale="!")},
        {"payer.email", "payer.phone", "payer.tax_id", "payer.locale"},
    ),
    "letters in a number": ({"payer": pb.Payer(phone="21 9xxxx xxxx")}, {"payer.phone"}),
    "keypad letters": ({"payer": pb.Payer(phone="(11) 3DENTISTA")}, {"payer.phone"}),
    "a context": ({"payer": pb.Payer(phone="912345678;phone-context=+5511")}, {"payer.phone"}),
    "two numbers": ({"payer": pb.Payer(phone="(11) 3123-4567/8")}, {"payer.phone"}),
    "automatic and another": ({"methods": ["PAYMENT_METHOD_AUTOMATIC", "PAYMENT_METHOD_CARD"]}, {"methods"}),
    "an answer's method": ({"methods": ["PAYMENT_METHOD_OTHER"]}, {"methods"}),
    "no capture": ({"capture": pb.CAPTURE_METHOD_UNSPECIFIED}, {"capture"}),
    "our own key": ({"metadata": {"topsmile_payment_id": "pay_1"}}, {"metadata.topsmile_payment_id"}),
    "too much of it": ({"metadata": {f"k{n}": "" for n in range(21)}}, {"metadata"}),
}


@pytest.mark.parametrize(("changes", "fields"), WRONG.values(), ids=WRONG.keys())
async def test_invalid_request_names_every_wrong_field(
    tmp_path: Path, bench: Bench, changes: dict[str, Any], fields: set[str]
) -> None:
    async with payments_service(f"sqlite:///{tmp_path}/p.db", bench.url) as payments:
        error = await refusal(payments.create(**changes))

    assert isinstance(error, InvalidRequest)
    assert {violation.field for violation in error.violations} == fields
    assert await bench.ledger() == []


@pytest.mark.parametrize(
    "amount",
    [(1500, "JPY"), (100, "ISK"), (1000, "KWD"), (99_999_999, "BRL"), (500, "XCG"), (300, "UGX"), (150, "SLE")],
)
async def test_amount_in_stripes_minor_units_is_sent_unchanged(
    tmp_path: Path, bench: Bench, amount: tuple[int, str]
) -> None:
    async with payments_service(f"sqlite:///{tmp_path}/p.db", bench.url) as payments:
        payment = await payments.create(amount=amount[0], currency=amount[1])

    assert (payment.amount.amount_minor, payment.amount.currency) == amount


async def test_cnpj_with_letters_is_accepted(tmp_path: Path, bench: Bench) -> None:
    async with payments_service(f"sqlite:///{tmp_path}/p.db", bench.url) as payments:
        payment = await payments.create(payer=pb.Payer(name="Clínica", tax_id="12.ABC.345/01DE-35"))

    assert payment.payer.tax_id == "12ABC34501DE35"


async def test_payment_is_found_by_either_id(payments: Payments) -> None:
    payment = await payments.create()
    by_stripe = pb.GetPaymentRequest(stripe_payment_intent_id=payment.stripe_payment_intent_id)

    assert (await payments.stub.GetPayment(by_stripe)).payment == payment
    assert isinstance(await refusal(payments.get("pay_unknown")), NotFound)
    assert isinstance(await refusal(payments.stub.GetPayment(pb.GetPaymentRequest())), InvalidRequest)


async def newest_event(bench: Bench) -> Any:
    page = (await bench.stripe("GET", "/v1/events", limit=1)).json
    return page["data"][0]

"""Changes by Stripe's events, over the wire, with the sandbox's own events."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import REGISTRY

from services.chassis.errors import InvalidRequest
from services.chassis.queue import operations
from services.payments import store
from tests.fakes.payments_service import Payments, event, eventually, payment_request, payments_service, refusal, status
from tests.fakes.sandbox_bench import Bench
from topsmile.common.v1 import common_pb2 as common
from topsmile.payments.v1 import payments_pb2 as pb

SAMPLES = Path(__file__).parents[2] / "../shared/provider-specs/stripe_event_samples.json"
DAY = 86_400_000


async def events_of(bench: Bench, kind: str = "payment_intent.*") -> list[dict[str, Any]]:
    """Stripe's events, oldest first."""
    page = (await bench.stripe("GET", "/v1/events", type=kind, limit=100)).json
    return list(reversed(page["data"]))


async def paid(payments: Payments, bench: Bench, **changes: Any) -> pb.Payment:
    payment = await payments.create(**changes)
    await bench.ask("POST", f"/_sandbox/payments/{payment.payment_id}/pay")
    return payment


async def test_paid_payment_succeeds_once(payments: Payments, bench: Bench) -> None:
    payment = await paid(payments, bench)
    created, succeeded = await events_of(bench)

    assert await payments.apply(succeeded) == ["APPLIED"]
    assert await payments.apply(succeeded, created) == ["DUPLICATE", "STALE"]
    after = await payments.get(payment.payment_id)
    assert status(after) == "SUCCEEDED"
    assert after.amount_captured.amount_minor == 15000
    assert after.paid_time.seconds == succeeded["created"]


async def test_paid_boleto_is_processing_and_then_succeeds(payments: Payments, bench: Bench) -> None:
    payment = await paid(payments, bench, methods=["PAYMENT_METHOD_BOLETO"])
    await payments.apply(*await events_of(bench))

    after = await payments.until(payment.payment_id, "SUCCEEDED")
    assert not after.HasField("boleto")
    assert not after.HasField("expires_time")
    assert after.method == common.PAYMENT_METHOD_BOLETO


async def test_declined_payment_awaits_a_method_and_holds_the_decline(payments: Payments, bench: Bench) -> None:
    payment = await payments.create()
    await bench.ask("POST", f"/_sandbox/payments/{payment.payment_id}/decline")
    (*_, failed) = await events_of(bench)

    assert await payments.apply(failed) == ["APPLIED"]
    await eventually(lambda: has_decline(payments, payment.payment_id))
    after = await payments.get(payment.payment_id)
    assert (status(after), after.decline.code) == ("AWAITING_METHOD", "generic_decline")
    assert after.decline.message


async def has_decline(payments: Payments, payment_id: str) -> bool:
    return (await payments.get(payment_id)).HasField("decline")


async def test_failure_event_after_success_changes_nothing(payments: Payments, bench: Bench) -> None:
    payment = await payments.create()
    await bench.ask("POST", f"/_sandbox/payments/{payment.payment_id}/decline")
    await bench.ask("POST", f"/_sandbox/payments/{payment.payment_id}/pay")
    _, failed, succeeded = await events_of(bench)

    assert await payments.apply(succeeded, failed) == ["APPLIED", "STALE"]
    assert status(await payments.get(payment.payment_id)) == "SUCCEEDED"


async def test_expired_pix_becomes_expired(payments: Payments, bench: Bench) -> None:
    payment = await payments.create(methods=["PAYMENT_METHOD_PIX"])
    await bench.ask("POST", f"/_sandbox/payments/{payment.payment_id}/decline")
    await payments.apply(*await events_of(bench))

    assert status(await payments.until(payment.payment_id, "EXPIRED")) == "EXPIRED"
    assert (await payments.create("key-2")).payment_id != payment.payment_id


async def test_expired_code_without_event_is_read(payments: Payments, bench: Bench) -> None:
    payment = await paid(payments, bench, methods=["PAYMENT_METHOD_PIX"])
    payments.database.offset_ms = DAY + 120_000

    assert status(await payments.until(payment.payment_id, "SUCCEEDED")) == "SUCCEEDED"


async def test_unpaid_code_is_read_for_days_before_it_is_canceled(payments: Payments, bench: Bench) -> None:
    payment = await payments.create(methods=["PAYMENT_METHOD_PIX"])
    expired = payment.expires_time.ToMilliseconds() - payment.create_time.ToMilliseconds()
    for day in range(1, 5):
        payments.database.offset_ms = expired + day * DAY
        await eventually(lambda day=day: has_read(payments, day))  # type: ignore[misc]  # mypy cannot infer the lambda
        assert status(await payments.get(payment.payment_id)) == "AWAITING_CUSTOMER"
    payments.database.offset_ms = expired + 5 * DAY + 3_600_000

    await payments.until(payment.payment_id, "EXPIRED")
    assert await at_stripe(bench, payment) == "canceled"


async def has_read(payments: Payments, times: int) -> bool:
    done = await payments.database.read(operations.list_jobs, "stripe", "done")
    return len([job for job in done if "/read/" in job["id"]]) >= times


async def at_stripe(bench: Bench, payment: pb.Payment) -> str:
    intent = (await bench.stripe("GET", f"/v1/payment_intents/{payment.stripe_payment_intent_id}")).json
    return str(intent["status"])


async def test_event_before_the_response_is_kept(payments: Payments, bench: Bench) -> None:
    await bench.fault(provider="stripe", kind="hang_after_accepting", path="POST /v1/payment_intents", seconds=0.8)
    creating = payments.stub.CreatePayment(payment_request())
    await eventually(lambda: made_at_stripe(bench))
    (created,) = await events_of(bench)
    payment_id = created["data"]["object"]["metadata"]["topsmile_payment_id"]
    await bench.ask("POST", f"/_sandbox/payments/{payment_id}/pay")
    (*_, succeeded) = await events_of(bench)

    assert await payments.apply(succeeded) == ["APPLIED"]
    answer = (await creating).payment
    assert (status(answer), answer.last_attempt) == ("SUCCEEDED", pb.ATTEMPT_OUTCOME_DONE)
    assert answer.client_secret
    assert status(await payments.get(payment_id)) == "SUCCEEDED"


async def made_at_stripe(bench: Bench) -> bool:
    return len(await events_of(bench)) > 0


async def test_thin_event_requests_a_reading(payments: Payments, bench: Bench) -> None:
    payment = await paid(payments, bench)
    thin = {
        "id": "evt_thin_1",
        "object": "v2.core.event",
        "type": "v1.payment_intent.succeeded",
        "livemode": False,
        "context": None,
        "related_object": {"id": payment.stripe_payment_intent_id, "type": "payment_intent", "url": "/v1/x"},
    }

    assert await payments.apply(thin, thin) == ["APPLIED", "DUPLICATE"]
    await payments.until(payment.payment_id, "SUCCEEDED")
    assert await payments.apply({**thin, "id": "evt_thin_2", "related_object": {"id": "pi_x"}}) == ["IGNORED_FOREIGN"]


async def test_many_unclear_events_cause_one_reading_at_a_time(payments: Payments, bench: Bench) -> None:
    payment = await payments.create()
    for _ in range(5):
        await bench.ask("POST", f"/_sandbox/payments/{payment.payment_id}/decline")
    received = await events_of(bench, "payment_intent.payment_failed")
    assert set(await payments.apply(*received)) <= {"APPLIED", "STALE"}
    await eventually(lambda: has_decline(payments, payment.payment_id))

    reads = [e for e in await bench.ledger() if e["method"] == "GET" and e["path"].startswith("/v1/payment_intents/")]
    assert 1 <= len(reads) <= 5


async def test_foreign_event_is_ignored(payments: Payments, bench: Bench) -> None:
    await paid(payments, bench)
    (*_, succeeded) = await events_of(bench)
    intent = succeeded["data"]["object"]

    def event_about(event_id: str, **changes: Any) -> dict[str, Any]:
        return {**succeeded, "id": event_id, "data": {"object": {**intent, **changes}}}

    foreign = [
        event_about("evt_a", id="pi_another", metadata={}),
        event_about("evt_b", id="pi_another", metadata=None),
        event_about("evt_c", id="pi_another"),
        {**succeeded, "id": "evt_d", "livemode": True},
        {**succeeded, "id": "evt_e", "account": "acct_1"},
        {**succeeded, "id": "evt_f", "type": "charge.succeeded"},
    ]
    assert await payments.apply(*foreign) == ["IGNORED_FOREIGN"] * len(foreign)
    assert await payments.apply({**succeeded, "id": "evt_g"}, account="acct_1") == ["IGNORED_FOREIGN"]
    assert await payments.apply(event_about("evt_h", id="pi_another", metadata={"topsmile_payment_id": "pay_x"})) == [
        "RETRY"
    ]
    old = event_about("evt_h", id="pi_another", metadata={"topsmile_payment_id": "pay_x"})
    assert await payments.apply(old, age=3600) == ["IGNORED_FOREIGN"]
    assert await payments.apply(succeeded) == ["APPLIED"]


@pytest.mark.parametrize(
    "body",
    [
        b"", b"[]", b"null", b"{", b"\xff", b"[" * 100_000, {"id": "evt_1"},
        {"id": "evt_1", "livemode": False, "created": 1, "type": "payment_intent.succeeded", "data": {"object": []}},
        {"id": "evt_1", "livemode": False, "created": 1, "type": "payment_intent.succeeded", "data": None},
        {"id": "evt_1", "livemode": False, "created": 1, "type": "payment_intent.x", "data": {"object": {"id": 7}}},
    ],
)  # fmt: skip
async def test_unreadable_event_is_rejected(tmp_path: Path, body: Any) -> None:
    async with payments_service(f"sqlite:///{tmp_path}/p.db", "http://127.0.0.1:9") as payments:
        assert await payments.apply(body) == ["REJECTED"]


async def test_oversized_batch_is_refused_whole(tmp_path: Path) -> None:
    async with payments_service(f"sqlite:///{tmp_path}/p.db", "http://127.0.0.1:9") as payments:
        for events in ([], [event({})] * 101, [event(b"x" * (1 << 20))] * 3):
            error = await refusal(payments.admin.ApplyEvents(pb.ApplyEventsRequest(events=events)))
            assert isinstance(error, InvalidRequest)


async def test_stripe_sample_events_are_parsed(payments: Payments) -> None:
    if not SAMPLES.exists():
        pytest.skip("Stripe's sample events are not here: they are not tried")
    samples = json.loads(SAMPLES.read_text())

    assert await payments.apply(*samples) == ["IGNORED_FOREIGN"] * len(samples)


async def test_stripe_sample_events_update_a_payment(payments: Payments) -> None:
    if not SAMPLES.exists():
        pytest.skip("Stripe's sample events are not here: they are not tried")
    payment = await payments.create()
    samples = [each for each in json.loads(SAMPLES.read_text()) if each["type"].startswith("payment_intent.")]
    for sample in samples:
        ours = {"id": payment.stripe_payment_intent_id, "metadata": {"topsmile_payment_id": payment.payment_id}}
        sample["data"]["object"] |= ours
    outcomes = await payments.apply(*samples)

    assert set(outcomes) <= {"APPLIED", "STALE"}
    assert status(await payments.get(payment.payment_id)) == "SUCCEEDED"


def changed(event_id: str, succeeded: dict[str, Any], **changes: Any) -> dict[str, Any]:
    """The same event with another id and other fields of its PaymentIntent."""
    return {**succeeded, "id": event_id, "data": {"object": {**succeeded["data"]["object"], **changes}}}


@pytest.mark.parametrize("metadata", [{}, None, {"other": "1"}, {"topsmile_payment_id": "pay_other"}])
async def test_captured_payment_intent_is_applied_whatever_its_metadata(
    payments: Payments, bench: Bench, metadata: Any
) -> None:
    payment = await paid(payments, bench)
    (*_, succeeded) = await events_of(bench)

    assert await payments.apply(changed("evt_1", succeeded, metadata=metadata)) == ["APPLIED"]
    after = await payments.get(payment.payment_id)
    assert (status(after), list(after.alerts)) == ("SUCCEEDED", [])


@pytest.mark.parametrize(
    "taken",
    [
        {"amount": 14000, "amount_received": 14000},
        {"amount_received": 100},
        {"amount": 99_999_999, "amount_received": 99_999_999, "metadata": {}},
        {"currency": "usd"},
    ],
)
async def test_different_amount_is_applied_and_raises_an_alert(
    payments: Payments, bench: Bench, taken: dict[str, Any]
) -> None:
    before = alerts_raised("AMOUNT_DIFFERS")
    payment = await paid(payments, bench)
    (*_, succeeded) = await events_of(bench)

    assert await payments.apply(changed("evt_1", succeeded, **taken)) == ["APPLIED"]
    after = await payments.get(payment.payment_id)
    assert (status(after), list(after.alerts)) == ("SUCCEEDED", [pb.PAYMENT_ALERT_AMOUNT_DIFFERS])
    assert (after.amount.amount_minor, after.amount.currency) == (15000, "BRL")
    assert after.amount_captured.amount_minor == taken.get("amount_received", 15000)
    assert after.amount_captured.currency == taken.get("currency", "brl").upper()
    await eventually(lambda: raised(before + 1))


def alerts_raised(alert: str) -> float:
    return REGISTRY.get_sample_value("topsmile_payment_alerts_total", {"alert": alert}) or 0.0


async def raised(times: float, alert: str = "AMOUNT_DIFFERS") -> bool:
    return alerts_raised(alert) == times


async def test_partial_manual_capture_raises_no_alert(payments: Payments, bench: Bench) -> None:
    payment = await payments.create(capture=pb.CAPTURE_METHOD_MANUAL)
    await bench.ask("POST", f"/_sandbox/payments/{payment.payment_id}/pay")
    (*_, held) = await events_of(bench)
    part = {"status": "succeeded", "amount_received": 9000}

    assert await payments.apply(changed("evt_1", held, **part)) == ["APPLIED"]
    after = await payments.get(payment.payment_id)
    assert (after.amount_captured.amount_minor, list(after.alerts)) == (9000, [])


GARBAGE: dict[str, dict[str, Any]] = {
    "negative": {"amount_received": -1},
    "huge": {"amount_received": 10**30},
    "just too large": {"amount_received": 100_000_000},
    "infinite": {"amount": float("inf")},
    "not a number": {"amount_received": float("nan")},
    "a list": {"amount": [15000]},
    "no currency": {"currency": None},
    "half a currency": {"currency": "br"},
    "a sentence for a currency": {"currency": "reais brasileiros"},
    "NUL in the secret": {"client_secret": "pi_\0"},
    "half a character": {"client_secret": "\ud800"},
    "an endless code": {"last_payment_error": {"code": "x" * 10_000}},
    "no status": {"status": ["succeeded"]},
    "a time after all times": {
        "status": "requires_action",
        "next_action": {
            "type": "pix_display_qr_code",
            "pix_display_qr_code": {"data": "x", "image_url_png": "x", "expires_at": 10**15},
        },
    },
}


@pytest.mark.parametrize("wrong", GARBAGE.values(), ids=GARBAGE.keys())
async def test_garbage_about_a_payment_is_rejected_and_requests_a_reading(
    payments: Payments, bench: Bench, wrong: dict[str, Any]
) -> None:
    payment = await paid(payments, bench)
    (*_, succeeded) = await events_of(bench)

    assert await payments.apply(changed("evt_1", succeeded, **wrong)) == ["REJECTED"]
    after = await payments.until(payment.payment_id, "SUCCEEDED")
    assert (after.amount_captured.amount_minor, list(after.alerts)) == (15000, [])


@pytest.mark.parametrize("created", ["1e400", "-1", "1e15", '"x"', "null", "[]", "9" * 5000])
async def test_event_with_a_garbage_time_is_rejected(payments: Payments, bench: Bench, created: str) -> None:
    payment = await paid(payments, bench)
    (*_, succeeded) = await events_of(bench)
    body = json.dumps({**succeeded, "id": "evt_1", "created": "CREATED"}).replace('"CREATED"', created).encode()

    assert await payments.apply(body) == ["REJECTED"]
    if len(created) < 100:  # otherwise it is not even JSON
        await payments.until(payment.payment_id, "SUCCEEDED")


@pytest.mark.parametrize("event_id", ["evt_\0", "evt_\n", "x" * 300, "evt_é\u200b"])
async def test_event_with_an_invalid_id_is_rejected(payments: Payments, bench: Bench, event_id: str) -> None:
    await paid(payments, bench)
    (*_, succeeded) = await events_of(bench)

    assert await payments.apply({**succeeded, "id": event_id}) == ["REJECTED"]


@pytest.mark.parametrize("related", [{"id": "pi_\0"}, {"id": {}}, {"id": "pi_' OR 1"}, {"id": None}])
async def test_thin_event_of_an_invalid_object_is_rejected(payments: Payments, related: dict[str, Any]) -> None:
    thin = {"id": "evt_1", "object": "v2.core.event", "livemode": False}

    assert await payments.apply({**thin, "related_object": {"type": "payment_intent", **related}}) == ["REJECTED"]


@pytest.mark.parametrize("wrong", [{"status": None}, {"amount": "many"}, {"currency": 7}])
async def test_rejected_event_does_not_block_its_valid_repetition(
    payments: Payments, bench: Bench, wrong: dict[str, Any]
) -> None:
    await bench.fault(provider="stripe", kind="status", status=500, path="GET /v1/payment_intents", times=0)
    payment = await paid(payments, bench)
    (*_, succeeded) = await events_of(bench)
    twin = changed(succeeded["id"], succeeded, **wrong)

    assert await payments.apply(twin, succeeded, succeeded, twin) == ["REJECTED", "APPLIED", "DUPLICATE", "REJECTED"]
    assert status(await payments.get(payment.payment_id)) == "SUCCEEDED"


@pytest.mark.parametrize("by", ["thin", "garbage", "garbage that names the payment only"])
@pytest.mark.parametrize("given_up", ["CANCELED", "EXPIRED", "FAILED"])
async def test_closed_payment_that_was_paid_is_read_again(
    payments: Payments, bench: Bench, given_up: str, by: str
) -> None:
    payment = await paid(payments, bench)
    (*_, succeeded) = await events_of(bench)
    await payments.database.run(stand, payment.payment_id, given_up)
    body = {
        "thin": thin_event(payment),
        "garbage": changed("evt_1", succeeded, amount=None, metadata={}),
        "garbage that names the payment only": changed("evt_1", succeeded, amount=None),
    }[by]

    assert await payments.apply(body) == ["APPLIED" if by == "thin" else "REJECTED"]
    await payments.until(payment.payment_id, "SUCCEEDED")
    assert await payments.apply({**thin_event(payment), "id": "evt_thin_9"}) == ["STALE"]


def thin_event(payment: pb.Payment) -> dict[str, Any]:
    return {
        "id": "evt_thin_1",
        "object": "v2.core.event",
        "type": "v1.payment_intent.succeeded",
        "livemode": False,
        "context": None,
        "related_object": {"id": payment.stripe_payment_intent_id, "type": "payment_intent", "url": "/v1/x"},
    }


async def stand(payment_id: str, wanted: str) -> None:
    before = await store.locked(payment_id)
    after = pb.Payment()
    after.CopyFrom(before.record)
    after.status = pb.PaymentStatus.Value(f"PAYMENT_STATUS_{wanted}")
    await store.save(before, after)


@pytest.mark.parametrize(
    ("response", "code", "reason"),
    [
        (402, "card_declined", "DECLINED"),
        (402, "insufficient_funds", "DECLINED"),
        (400, "parameter_invalid_integer", "PROVIDER_REFUSED_INPUT"),
    ],
)
async def test_refused_key_returns_its_payment_after_it_is_paid(
    payments: Payments, bench: Bench, response: int, code: str, reason: str
) -> None:
    await bench.fault(provider="stripe", kind="status", status=response, code=code, path="POST /v1/payment_intents")
    refused = await refusal(payments.create())
    intent = (await bench.stripe("POST", "/v1/payment_intents", amount=15000, currency="brl")).json
    metadata = {"topsmile_payment_id": refused.metadata["payment_id"]}
    body = {
        "id": "evt_1", "type": "payment_intent.succeeded", "livemode": False, "created": 1_700_000_000,
        "data": {"object": {**intent, "metadata": metadata, "status": "succeeded", "amount_received": 15000}},
    }  # fmt: skip

    assert (await refusal(payments.create())).reason == reason
    assert await payments.apply(body) == ["APPLIED"]
    answer = await payments.create()
    assert (answer.payment_id, status(answer)) == (refused.metadata["payment_id"], "SUCCEEDED")


async def opens(bench: Bench, payment: pb.Payment, method: str) -> None:
    """What the payer's browser does with Stripe's form."""
    form = {"payment_method_data[type]": method} if method == "pix" else {"payment_method": method}
    await bench.stripe("POST", f"/v1/payment_intents/{payment.stripe_payment_intent_id}/confirm", **form)


async def readings(bench: Bench, payment: pb.Payment) -> int:
    path = f"/v1/payment_intents/{payment.stripe_payment_intent_id}"
    return len([entry for entry in await bench.ledger() if (entry["method"], entry["path"]) == ("GET", path)])


@pytest.mark.parametrize(
    ("offered", "steps", "paid_with"),
    [
        ([], ["pix", "pm_card_visa"], "CARD"),
        (["CARD", "PIX"], ["pix", "pm_card_visa"], "CARD"),
        (["CARD", "PIX"], ["pm_card_chargeDeclined", "pix"], "PIX"),
        ([], ["pm_card_authenticationRequired"], "CARD"),
        (["CARD", "BOLETO", "PIX"], ["pix"], "PIX"),
    ],
)
async def test_payment_is_paid_with_the_method_of_its_charge(
    payments: Payments, bench: Bench, offered: list[str], steps: list[str], paid_with: str
) -> None:
    payment = await payments.create(methods=[f"PAYMENT_METHOD_{method}" for method in offered])
    for step in steps:
        await opens(bench, payment, step)
    if steps[-1] != "pm_card_visa":
        await bench.ask("POST", f"/_sandbox/payments/{payment.payment_id}/pay")
    await payments.apply(*(await events_of(bench)))
    after = await payments.get(payment.payment_id)

    assert (status(after), common.PaymentMethod.Name(after.method)) == ("SUCCEEDED", f"PAYMENT_METHOD_{paid_with}")


@pytest.mark.parametrize("method", ["PIX", "BOLETO", "CARD"])
async def test_payment_with_one_offered_method_is_not_read_for_it(
    payments: Payments, bench: Bench, method: str
) -> None:
    made = await paid(payments, bench, methods=[f"PAYMENT_METHOD_{method}"])
    await payments.apply(*(await events_of(bench, "payment_intent.succeeded")))
    payment = await payments.get(made.payment_id)

    assert common.PaymentMethod.Name(payment.method) == f"PAYMENT_METHOD_{method}"
    assert await readings(bench, payment) == 0


@pytest.mark.parametrize("trouble", [{"kind": "status", "status": 503}, {"kind": "reset"}, {"kind": "throttle"}])
async def test_payment_with_an_unreadable_method_succeeds_without_method(
    payments: Payments, bench: Bench, trouble: dict[str, Any]
) -> None:
    payment = await payments.create()
    await opens(bench, payment, "pix")
    await payments.apply(*(await events_of(bench)))
    await payments.until(payment.payment_id, "AWAITING_CUSTOMER")
    await opens(bench, payment, "pm_card_visa")
    (succeeded,) = await events_of(bench, "payment_intent.succeeded")
    await bench.fault(provider="stripe", path="GET", times=0, **trouble)
    await payments.apply(succeeded)
    after = await payments.get(payment.payment_id)

    assert (status(after), after.method) == ("SUCCEEDED", common.PAYMENT_METHOD_UNSPECIFIED)


@pytest.mark.parametrize("unknown", ["requires_reauthorization", "on_hold", "partially_paid"])
async def test_event_with_an_unknown_status_requests_a_reading(payments: Payments, bench: Bench, unknown: str) -> None:
    payment = await paid(payments, bench)
    succeeded = (await events_of(bench))[-1]
    before = unexpected("payment_intent_status")

    assert await payments.apply(changed("evt_new", succeeded, status=unknown)) == ["APPLIED"]
    assert unexpected("payment_intent_status") == before + 1
    await payments.until(payment.payment_id, "SUCCEEDED")
    assert payments.parts.breaker.state == "CLOSED"


def unexpected(what: str) -> float:
    labels = {"service": "stripe", "what": what}
    return REGISTRY.get_sample_value("topsmile_provider_unexpected_total", labels) or 0.0


@pytest.mark.parametrize(
    "absent",
    [
        ("next_action", "last_payment_error", "client_secret", "latest_charge"),
        ("metadata", "payment_method", "payment_method_types", "payment_method_options"),
        ("description", "customer", "automatic_payment_methods", "processing", "shipping"),
    ],
)
async def test_event_with_optional_fields_that_are_null_or_absent_is_applied(
    payments: Payments, bench: Bench, absent: tuple[str, ...]
) -> None:
    payment = await paid(payments, bench)
    succeeded = (await events_of(bench))[-1]
    null = changed("evt_null", succeeded, **dict.fromkeys(absent))
    without = json.loads(json.dumps(null).replace("evt_null", "evt_without"))
    for name in absent:
        without["data"]["object"].pop(name, None)

    assert (await payments.apply(null, without))[0] == "APPLIED"
    assert status(await payments.get(payment.payment_id)) == "SUCCEEDED"
    assert (await payments.apply(without)) == ["STALE"]

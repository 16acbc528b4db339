import asyncio
import hashlib
import hmac
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import stripe

from tests.fakes.sandbox_bench import STRIPE_SECRET, Bench, sandbox_bench
from tests.fakes.webhook_receiver import Received


@pytest.fixture
async def bench(tmp_path: Path) -> AsyncIterator[Bench]:
    async with sandbox_bench(tmp_path / "sandbox.db") as bench:
        yield bench


BILLING = "payment_method_data[billing_details]"
VOUCHER = {
    "payment_method_data[boleto][tax_id]": "000.000.000-00",
    f"{BILLING}[name]": "Ana Souza",
    f"{BILLING}[email]": "ana@example.com",
    f"{BILLING}[address][line1]": "Rua Sao Joao, 5",
    f"{BILLING}[address][city]": "Sao Paulo",
    f"{BILLING}[address][state]": "SP",
    f"{BILLING}[address][postal_code]": "01310-100",
    f"{BILLING}[address][country]": "BR",
}


def events(received: list[Received]) -> list[str]:
    return [json.loads(webhook.body)["type"] for webhook in received]


async def create(bench: Bench, key: str | None = None, **changes: Any) -> Any:
    return (await bench.stripe("POST", "/v1/payment_intents", key, amount=15000, currency="brl", **changes)).json


async def test_a_confirmed_test_card_is_charged_and_told_of(bench: Bench) -> None:
    made = await create(bench, "op-1", **{"metadata[topsmile_payment_id]": "pay_1"})
    paid = (await bench.stripe("POST", f"/v1/payment_intents/{made['id']}/confirm", payment_method="pm_card_visa")).json
    received = await bench.receiver.wait_for(lambda got: len(got) == 3)

    assert made["status"] == "requires_payment_method"
    assert (paid["status"], paid["amount_received"]) == ("succeeded", 15000)
    assert sorted(events(received)) == ["charge.succeeded", "payment_intent.created", "payment_intent.succeeded"]
    first = json.loads(received[0].body)
    assert (first["request"]["idempotency_key"], first["data"]["object"]["metadata"]) == (
        "op-1",
        {"topsmile_payment_id": "pay_1"},
    )


async def test_every_webhook_is_signed(bench: Bench) -> None:
    await create(bench)
    webhook = (await bench.receiver.wait_for(lambda got: len(got) == 1))[0]

    seconds, signature = (part.split("=")[1] for part in webhook.headers["Stripe-Signature"].split(","))
    signed = hmac.new(STRIPE_SECRET.encode(), f"{seconds}.".encode() + webhook.body, hashlib.sha256).hexdigest()
    assert (webhook.path, signed) == ("/webhooks/stripe", signature)


async def test_a_webhook_is_sent_again_until_it_is_taken(bench: Bench) -> None:
    bench.receiver.statuses = [503, 500]
    await create(bench)
    received = await bench.receiver.wait_for(lambda got: len(got) == 3)

    assert len({webhook.body for webhook in received}) == 1


async def test_the_sdk_gets_what_it_expects(bench: Bench) -> None:
    sdk_http = stripe.RequestsClient()
    client = stripe.StripeClient("sk_test_sdk", base_addresses={"api": bench.url}, http_client=sdk_http)
    http = client.v1.payment_intents
    made = await asyncio.to_thread(
        http.create, {"amount": 9900, "currency": "brl", "automatic_payment_methods": {"enabled": True}}
    )
    with pytest.raises(stripe.CardError) as declined:
        await asyncio.to_thread(http.confirm, made.id, {"payment_method": "pm_card_chargeDeclinedInsufficientFunds"})
    canceled = await asyncio.to_thread(http.cancel, made.id, {"cancellation_reason": "abandoned"})
    listed = await asyncio.to_thread(client.v1.events.list, {"limit": 2})
    sdk_http.close()  # type: ignore[no-untyped-call]  # the SDK leaves it untyped

    error: Any = declined.value.error
    assert (error.code, error.decline_code, error.advice_code) == (
        "card_declined",
        "insufficient_funds",
        "try_again_later",
    )
    assert error.payment_intent.id == made.id
    assert (canceled.status, canceled.cancellation_reason) == ("canceled", "abandoned")
    assert [event.type for event in listed.data] == ["payment_intent.canceled", "payment_intent.payment_failed"]
    assert listed.has_more


async def test_a_repeated_key_repeats_the_answer_and_not_the_work(bench: Bench) -> None:
    form: dict[str, Any] = {"amount": 15000, "currency": "brl"}
    first = await bench.stripe("POST", "/v1/payment_intents", "op-1", **form)
    again = await bench.stripe("POST", "/v1/payment_intents", "op-1", **form)

    assert first.body == again.body
    assert again.headers["Idempotent-Replayed"] == "true"
    assert [entry["outcome"] for entry in await bench.ledger()] == ["accepted", "replayed"]
    assert (await bench.stripe("GET", "/v1/payment_intents")).json["data"] == [first.json]


async def test_a_decline_is_replayed_too(bench: Bench) -> None:
    form: dict[str, Any] = {
        "amount": 15000,
        "currency": "brl",
        "confirm": "true",
        "payment_method": "pm_card_chargeDeclined",
    }
    first = await bench.stripe("POST", "/v1/payment_intents", "op-1", **form)
    again = await bench.stripe("POST", "/v1/payment_intents", "op-1", **form)

    assert (first.status, first.body) == (402, again.body) == (again.status, again.body)


@pytest.mark.parametrize("fault", [{"status": 500}, {"status": 402, "stored": True}, {"status": 503, "stored": True}])
async def test_a_stored_failure_is_repeated_although_the_fault_goes_on(bench: Bench, fault: dict[str, Any]) -> None:
    await bench.fault(provider="stripe", kind="status", times=0, **fault)
    form: dict[str, Any] = {"amount": 15000, "currency": "brl"}
    answers = [await bench.stripe("POST", "/v1/payment_intents", "op-1", **form) for _ in range(3)]
    other = await bench.stripe("POST", "/v1/payment_intents", "op-1", amount=1600, currency="brl")

    assert {(answer.status, answer.body) for answer in answers} == {(fault["status"], answers[0].body)}
    assert [answer.headers.get("Idempotent-Replayed") for answer in answers] == [None, "true", "true"]
    assert other.json["error"]["type"] == "idempotency_error"
    assert len(await bench.ledger()) == 4


async def test_an_altered_answer_leaves_what_is_stored_as_it_is(bench: Bench) -> None:
    await bench.fault(
        provider="stripe", kind="alter", path="POST", fields={"status": "requires_nothing", "metadata": None}
    )
    altered = await create(bench, "op-1")
    again = await create(bench, "op-1")

    assert (altered["status"], altered["metadata"]) == ("requires_nothing", None)
    assert (again["status"], again["metadata"]) == ("requires_payment_method", {})


async def test_a_key_with_other_parameters_is_refused(bench: Bench) -> None:
    await create(bench, "op-1")
    answer = await bench.stripe("POST", "/v1/payment_intents", "op-1", amount=16000, currency="brl")

    assert (answer.status, answer.json["error"]["type"]) == (400, "idempotency_error")


async def test_a_key_whose_request_is_running_is_in_use(bench: Bench) -> None:
    await bench.fault(provider="stripe", kind="delay", seconds=0.5)
    first = asyncio.create_task(bench.stripe("POST", "/v1/payment_intents", "op-1", amount=15000, currency="brl"))
    await asyncio.sleep(0.2)
    second = await bench.stripe("POST", "/v1/payment_intents", "op-1", amount=15000, currency="brl")

    assert (second.status, second.json["error"]["code"]) == (409, "idempotency_key_in_use")
    assert (await first).status == 200


async def test_a_refused_parameter_does_not_use_up_the_key(bench: Bench) -> None:
    await bench.stripe("POST", "/v1/payment_intents", "op-1", amount=15000)

    assert (await create(bench, "op-1"))["status"] == "requires_payment_method"


@pytest.mark.parametrize(
    ("changes", "code", "param"),
    [
        ({"payment_method_types[]": "card"}, "payment_method_types_no_longer_supported", "payment_method_types"),
        ({"surprise": "1"}, "parameter_unknown", "surprise"),
        ({"amount": "10.5"}, "parameter_invalid_integer", "amount"),
        ({"amount": "0"}, "parameter_invalid_integer", "amount"),
        ({"amount": "49"}, "amount_too_small", "amount"),
        ({"amount": "100000000"}, "amount_too_large", "amount"),
        ({"currency": ""}, "parameter_missing", "currency"),
        ({"currency": "brx"}, None, "currency"),
        ({"metadata": "x"}, "parameter_invalid_hash", "metadata"),
        ({"description[]": "x"}, "parameter_invalid_string", "description"),
        ({"capture_method": "never"}, None, "capture_method"),
    ],
)
async def test_a_wrong_parameter_is_named(bench: Bench, changes: dict[str, Any], code: str | None, param: str) -> None:
    form: dict[str, Any] = {"amount": 15000, "currency": "brl", **changes}
    answer = await bench.stripe("POST", "/v1/payment_intents", **form)

    error = answer.json["error"]
    assert (answer.status, error.get("code"), error["param"]) == (400, code, param)


@pytest.mark.parametrize("api_key", ["sk_live_1", "sk_test_revoked", "nonsense"])
async def test_only_test_keys_are_let_in(bench: Bench, api_key: str) -> None:
    answer = await bench.stripe("GET", "/v1/events", api_key=api_key)

    assert (answer.status, answer.json["error"]["type"]) == (401, "invalid_request_error")


async def test_what_does_not_exist_is_said_so_in_stripes_words(bench: Bench) -> None:
    intent = await bench.stripe("GET", "/v1/payment_intents/pi_none")
    path = await bench.stripe("GET", "/v1/nothing")

    assert (intent.status, intent.json["error"]["code"]) == (404, "resource_missing")
    assert (path.status, path.json["error"]["type"]) == (404, "invalid_request_error")


async def test_a_manual_capture_holds_then_takes(bench: Bench) -> None:
    form = {"confirm": "true", "payment_method": "pm_card_visa", "capture_method": "manual"}
    held = await create(bench, **form)
    taken = (await bench.stripe("POST", f"/v1/payment_intents/{held['id']}/capture", amount_to_capture=10000)).json

    assert (held["status"], held["amount_capturable"]) == ("requires_capture", 15000)
    assert (taken["status"], taken["amount_received"]) == ("succeeded", 10000)


@pytest.mark.parametrize(
    ("kind", "more", "action", "happened"),
    [
        ("pix", {}, "pix_display_qr_code", "payment_intent.succeeded"),
        (
            "boleto",
            VOUCHER,
            "boleto_display_details",
            "payment_intent.processing",
        ),
    ],
)
async def test_pix_and_boleto_wait_for_the_customer(
    bench: Bench, kind: str, more: dict[str, str], action: str, happened: str
) -> None:
    waiting = await create(
        bench, **{"confirm": "true", "payment_method_data[type]": kind, "allowed_payment_method_types[]": kind, **more}
    )
    paid = await bench.ask("POST", f"/_sandbox/payments/{waiting['id']}/pay")
    received = await bench.receiver.wait_for(lambda got: "payment_intent.succeeded" in events(got))

    assert (waiting["status"], waiting["next_action"]["type"]) == ("requires_action", action)
    assert paid.json["status"] == "succeeded"
    assert "payment_intent.requires_action" in events(received)
    assert happened in events(received)


@pytest.mark.parametrize(
    ("changes", "param"),
    [
        *(({name: ""}, name) for name in VOUCHER),
        ({f"{BILLING}[name]": "Ana Conceição"}, f"{BILLING}[name]"),
        ({f"{BILLING}[address][city]": "São Paulo"}, f"{BILLING}[address][city]"),
        ({f"{BILLING}[address][country]": "PT"}, f"{BILLING}[address][country]"),
        (
            {"payment_method_options[boleto][expires_after_days]": "61"},
            "payment_method_options[boleto][expires_after_days]",
        ),
        (
            {"payment_method_options[pix][expires_after_seconds]": "59"},
            "payment_method_options[pix][expires_after_seconds]",
        ),
    ],
)
async def test_boleto_with_a_billing_detail_missing_or_not_ascii_is_refused(
    bench: Bench, changes: dict[str, str], param: str
) -> None:
    form: dict[str, Any] = {"amount": 1500, "currency": "brl", "confirm": "true", "payment_method_data[type]": "boleto"}
    answer = await bench.stripe("POST", "/v1/payment_intents", **{**form, **VOUCHER, **changes})

    assert (answer.status, answer.json["error"]["param"]) == (400, param)


async def test_a_person_pays_on_the_page(bench: Bench) -> None:
    made = await create(bench)
    page = await bench.ask("GET", f"/pay/{made['id']}")
    after = await bench.ask("POST", f"/pay/{made['id']}", data={"decision": "pay", "from": "payment"})

    assert "R$ 150,00" in page.body.decode()
    assert "Tudo certo" in after.body.decode()


async def test_our_own_id_finds_the_payment_to_decline(bench: Bench) -> None:
    await create(bench, **{"metadata[topsmile_payment_id]": "pay_1"})
    declined = await bench.ask("POST", "/_sandbox/payments/pay_1/decline")

    assert declined.json["status"] == "requires_payment_method"
    assert declined.json["last_payment_error"]["decline_code"] == "generic_decline"


async def test_events_are_listed_newest_first_and_paged(bench: Bench) -> None:
    for _ in range(3):
        await create(bench)
    first = (await bench.stripe("GET", "/v1/events", limit=2)).json
    rest = (await bench.stripe("GET", "/v1/events", limit=2, starting_after=first["data"][-1]["id"])).json
    before = (await bench.stripe("GET", "/v1/events", limit=2, ending_before=first["data"][-1]["id"])).json

    assert (len(first["data"]), first["has_more"]) == (2, True)
    assert (len(rest["data"]), rest["has_more"]) == (1, False)
    assert before["data"] == first["data"][:1]
    assert (await bench.stripe("GET", "/v1/events", **{"types[]": "charge.*"})).json["data"] == []
    one = first["data"][0]
    assert (await bench.stripe("GET", f"/v1/events/{one['id']}")).json == one


async def test_what_is_over_cannot_be_canceled(bench: Bench) -> None:
    paid = await create(bench, confirm="true", payment_method="pm_card_visa")
    answer = await bench.stripe("POST", f"/v1/payment_intents/{paid['id']}/cancel")

    error = answer.json["error"]
    assert (answer.status, error["code"]) == (400, "payment_intent_unexpected_state")
    assert error["payment_intent"]["status"] == "succeeded"

"""What Stripe's refusals and silences become: one row each, over real HTTP."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from services.chassis.errors import (
    CredentialsRefused,
    ExternalServiceError,
    OutcomeUnknown,
    ProviderBusy,
    ProviderKeyReused,
    ProviderNotFound,
    ProviderRefusedInput,
    ProviderRejected,
    ProviderThrottled,
)
from services.chassis.outbound.client import outbound
from services.payments.requests import PaymentRequest
from services.payments.stripe_provider import StripeProvider
from tests.fakes.payments_service import payment_request
from tests.fakes.sandbox_bench import Bench, sandbox_bench

ROWS: list[tuple[dict[str, Any], type[ExternalServiceError]]] = [
    ({"kind": "status", "status": 400}, ProviderRefusedInput),
    ({"kind": "status", "status": 400, "code": "rate_limit"}, ProviderThrottled),
    ({"kind": "status", "status": 400, "code": "payment_intent_unexpected_state"}, ProviderRejected),
    ({"kind": "status", "status": 401}, CredentialsRefused),
    ({"kind": "status", "status": 402}, ProviderRejected),
    ({"kind": "status", "status": 403}, CredentialsRefused),
    ({"kind": "status", "status": 404}, ProviderNotFound),
    ({"kind": "status", "status": 409}, ProviderBusy),
    ({"kind": "status", "status": 400, "code": "testmode_charges_only"}, CredentialsRefused),
    ({"kind": "status", "status": 403, "code": "account_invalid"}, CredentialsRefused),
    ({"kind": "throttle"}, ProviderThrottled),
    ({"kind": "status", "status": 429, "code": "lock_timeout"}, ProviderBusy),
    ({"kind": "status", "status": 500}, OutcomeUnknown),
    ({"kind": "status", "status": 503}, OutcomeUnknown),
    ({"kind": "reset"}, OutcomeUnknown),
    ({"kind": "truncate"}, OutcomeUnknown),
]


@pytest.fixture
async def bench(tmp_path: Path) -> AsyncIterator[Bench]:
    async with sandbox_bench(tmp_path / "sandbox.db") as made:
        yield made


@pytest.fixture
async def stripe(bench: Bench) -> AsyncIterator[StripeProvider]:
    async with outbound(bench.url, service="stripe", timeout=2.0) as http:
        yield StripeProvider(http, bench.url, "sk_test_1")


async def create(stripe: StripeProvider, key: str = "key-1", **changes: Any) -> Any:
    return await stripe.create(stripe.prepare("pay_1", PaymentRequest.from_request(payment_request(**changes))), key)


@pytest.mark.parametrize(("fault", "kind"), ROWS)
async def test_stripe_refusal_maps_to_its_error(
    stripe: StripeProvider, bench: Bench, fault: dict[str, Any], kind: type[ExternalServiceError]
) -> None:
    await bench.fault(provider="stripe", path="POST", **fault)
    with pytest.raises(ExternalServiceError) as refused:
        await create(stripe)

    assert type(refused.value) is kind
    assert refused.value.service == "stripe"
    assert refused.value.definite is (kind not in (OutcomeUnknown, ProviderBusy))


READINGS: list[tuple[dict[str, Any], type[ExternalServiceError], bool]] = [
    ({"status": 400}, OutcomeUnknown, False),
    ({"status": 401}, CredentialsRefused, False),
    ({"status": 402}, OutcomeUnknown, False),
    ({"status": 403}, OutcomeUnknown, False),
    ({"status": 403, "code": "more_permissions_required"}, OutcomeUnknown, False),
    ({"status": 404}, ProviderNotFound, False),
    ({"status": 410}, OutcomeUnknown, False),
    ({"status": 424}, OutcomeUnknown, False),
    ({"status": 429}, ProviderThrottled, False),
    ({"status": 500}, OutcomeUnknown, True),
    ({"status": 503}, OutcomeUnknown, True),
]


@pytest.mark.parametrize(("fault", "kind", "is_fault"), READINGS)
async def test_refused_reading_concerns_its_object_only(
    stripe: StripeProvider, bench: Bench, fault: dict[str, Any], kind: type[ExternalServiceError], is_fault: bool
) -> None:
    made = await create(stripe)
    await bench.fault(provider="stripe", path="GET", kind="status", times=2, **fault)
    for reading in (stripe.retrieve(made.intent_id), stripe.find("pay_1", 0, 1)):
        with pytest.raises(ExternalServiceError) as refused:
            await reading
        assert (type(refused.value), refused.value.provider_fault) == (kind, is_fault)


@pytest.mark.parametrize(
    "fields",
    [
        dict.fromkeys(
            (
                "metadata", "next_action", "last_payment_error", "client_secret", "amount_received", "latest_charge",
                "payment_method", "payment_method_types", "payment_method_options", "automatic_payment_methods",
            )
        ),
        {"next_action": {"type": "pix_display_qr_code", "pix_display_qr_code": None}},
        {"next_action": {"type": "pix_display_qr_code", "pix_display_qr_code": {"data": None, "expires_at": None}}},
        {"next_action": {"type": "boleto_display_details", "boleto_display_details": {"number": None}}},
        {"next_action": {"type": "a_new_one"}},
        {"last_payment_error": {"code": None, "decline_code": None, "advice_code": None}},
        {"latest_charge": {"id": "ch_1", "payment_method_details": None}, "status": "succeeded"},
        {"a_new_field": {"of": ["any", "shape"]}},
    ],
)  # fmt: skip
async def test_payment_intent_without_optional_fields_is_parsed(
    stripe: StripeProvider, bench: Bench, fields: dict[str, Any]
) -> None:
    await bench.fault(provider="stripe", path="POST", kind="alter", fields=fields)
    made = await create(stripe)

    assert made.intent_id.startswith("pi_")
    assert made.status == ("SUCCEEDED" if "status" in fields else "AWAITING_METHOD")


@pytest.mark.parametrize(
    ("fields", "is_fault"),
    [
        ({"amount": None}, False),
        ({"amount": "15000"}, False),
        ({"amount": 16000}, False),
        ({"currency": None}, False),
        ({"status": None}, False),
        ({"status": {"is": "new"}}, False),
        ({"metadata": "x"}, False),
        ({"object": "list"}, False),
        ({"object": "charge"}, False),
        ({"object": None}, True),
    ],
)
async def test_unreadable_payment_intent_is_no_provider_fault(
    stripe: StripeProvider, bench: Bench, fields: dict[str, Any], is_fault: bool
) -> None:
    await bench.fault(provider="stripe", path="POST", kind="alter", fields=fields)
    with pytest.raises(OutcomeUnknown) as unread:
        await create(stripe)

    assert (unread.value.definite, unread.value.provider_fault) == (False, is_fault)


@pytest.mark.parametrize(
    "fields",
    [{"data": None}, {"data": {"of": "another form"}}, {"data": "x"}, {"data": [None, 1, "x", []]}, {"data": []}],
)
async def test_unreadable_list_is_outcome_unknown_and_no_provider_fault(
    stripe: StripeProvider, bench: Bench, fields: dict[str, Any]
) -> None:
    await bench.fault(provider="stripe", path="GET", kind="alter", fields={"has_more": None, **fields})
    try:
        assert await stripe.find("pay_1", 0, 1) is None
        assert isinstance(fields["data"], list)
    except OutcomeUnknown as unread:
        assert unread.provider_fault is False  # noqa: PT017 - one of two ways to answer


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        *((error, OutcomeUnknown) for error in (None, "x", ["a"], 5)),
        *((error, ProviderRefusedInput) for error in ({}, {"code": ["a"], "type": 5, "param": {}}, {"code": None})),
    ],
)
async def test_refusal_in_another_form_is_outcome_unknown(
    stripe: StripeProvider, bench: Bench, error: object, kind: type[ExternalServiceError]
) -> None:
    await bench.fault(provider="stripe", path="POST", kind="alter", fields={"error": error}, times=0)
    with pytest.raises(ExternalServiceError) as refused:
        await create(stripe, amount=10)

    assert type(refused.value) is kind


async def test_replayed_failure_is_no_provider_fault(stripe: StripeProvider, bench: Bench) -> None:
    await bench.fault(provider="stripe", path="POST", kind="status", status=500)
    faults = []
    for _ in range(3):
        with pytest.raises(OutcomeUnknown) as failed:
            await create(stripe)
        faults.append((failed.value.provider_fault, failed.value.kept))

    assert faults == [(True, True), (None, True), (None, True)]


async def test_throttle_returns_a_retry_delay(stripe: StripeProvider, bench: Bench) -> None:
    await bench.fault(provider="stripe", kind="throttle", retry_after=7)
    with pytest.raises(ProviderThrottled) as refused:
        await create(stripe)

    assert refused.value.retry_after == 7.0


async def test_reused_key_is_not_definite(stripe: StripeProvider) -> None:
    await create(stripe)
    with pytest.raises(ProviderKeyReused) as refused:
        await create(stripe, amount=20000)

    assert not refused.value.definite


async def test_stripes_text_about_a_person_is_not_passed_on(stripe: StripeProvider, bench: Bench) -> None:
    await bench.fault(provider="stripe", kind="status", status=400, message="Invalid email: ana@example.com")
    with pytest.raises(ProviderRefusedInput) as refused:
        await create(stripe)

    assert "ana@example.com" not in refused.value.message


async def test_payment_on_a_later_page_is_found_by_its_time(stripe: StripeProvider, bench: Bench) -> None:
    made = await create(stripe)
    for _ in range(101):
        await bench.stripe("POST", "/v1/payment_intents", amount=100, currency="brl")
    found = await stripe.find("pay_1", 0, 10**11)

    assert found == made
    assert await stripe.find("pay_2", 0, 10**11) is None
    assert await stripe.find("pay_1", 0, 1) is None

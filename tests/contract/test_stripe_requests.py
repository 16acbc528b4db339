"""What leaves for Stripe is what its own list of parameters allows, at the version that the SDK names."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
from google.protobuf.duration_pb2 import Duration

from services.chassis.outbound.client import outbound
from services.payments.requests import PaymentRequest
from services.payments.stripe_provider import StripeProvider
from tests.fakes.payments_service import payment_request
from tests.fakes.sandbox_bench import Bench, sandbox_bench
from topsmile.payments.v1 import payments_pb2 as pb

PARAMETERS = Path(__file__).parents[2] / "../shared/provider-specs/stripe_params_endive.json"
VERSION = "2026-10-28.endive"

ORDERS: dict[str, dict[str, Any]] = {
    "automatic": {},
    "as little as possible": {"payer": None, "description": "", "metadata": {}},
    "cards, held": {"methods": ["PAYMENT_METHOD_CARD"], "capture": pb.CAPTURE_METHOD_MANUAL},
    "cards and pix": {"methods": ["PAYMENT_METHOD_CARD", "PAYMENT_METHOD_PIX"]},
    "pix": {"methods": ["PAYMENT_METHOD_PIX"]},
    "boleto": {"methods": ["PAYMENT_METHOD_BOLETO"], "expiry": Duration(seconds=5 * 86_400)},
}


@pytest.fixture
async def bench(tmp_path: Path) -> AsyncIterator[Bench]:
    async with sandbox_bench(tmp_path / "sandbox.db") as made:
        yield made


def known(operation: str) -> dict[str, dict[str, Any]]:
    if not PARAMETERS.exists():
        pytest.skip("Stripe's parameters are not here: its requests are not checked against them")
    found: dict[str, dict[str, Any]] = json.loads(PARAMETERS.read_text())[operation]
    return found


def leaves(params: dict[str, Any], path: str = "") -> Iterator[tuple[str, object]]:
    for name, value in params.items():
        if isinstance(value, dict) and path + name != "metadata":
            yield from leaves(value, f"{path}{name}.")
        else:
            yield path + name, value


def stripe(http: Any = None) -> StripeProvider:
    return StripeProvider(http, "", "sk_test_1")


@pytest.mark.parametrize("changes", ORDERS.values(), ids=ORDERS.keys())
def test_create_request_has_stripes_own_parameters(changes: dict[str, Any]) -> None:
    params = json.loads(stripe().prepare("pay_1", PaymentRequest.from_request(payment_request(**changes))))
    allowed = known("POST /v1/payment_intents")
    kinds: dict[str, type | tuple[type, ...]] = {"integer": int, "boolean": bool, "string": str, "array": list}

    for name, value in leaves(params):
        if name != "metadata":
            assert isinstance(value, kinds[allowed[name]["type"]]), name
            assert value in allowed[name].get("enum", [value])
    assert params["metadata"]["topsmile_payment_id"] == "pay_1"
    assert "receipt_email" not in params  # the receipt is ours to send


def test_boleto_request_holds_every_billing_detail_in_ascii() -> None:
    params = json.loads(
        stripe().prepare("pay_1", PaymentRequest.from_request(payment_request(methods=["PAYMENT_METHOD_BOLETO"])))
    )
    billing = params["payment_method_data"]["billing_details"]
    sent = {**billing, **billing["address"]}

    for name in ("name", "email", "line1", "city", "state", "postal_code", "country"):
        assert sent[name]
        assert sent[name].isascii()


def test_list_request_has_stripes_own_parameters() -> None:
    assert {"created", "limit", "starting_after"} <= known("GET /v1/payment_intents").keys()


async def test_request_headers_hold_version_and_key_only(bench: Bench) -> None:
    async with outbound(bench.url, service="stripe") as http:
        provider = StripeProvider(http, bench.url, "sk_test_1")
        prepared = provider.prepare("pay_1", PaymentRequest.from_request(payment_request()))
        first = await provider.create(prepared, "pay_1-create")
        again = await provider.create(prepared, "pay_1-create")
        answer = await bench.stripe("GET", f"/v1/payment_intents/{first.intent_id}")

    assert first == again
    assert answer.headers["Stripe-Version"] == VERSION
    assert [entry["idempotency_key"] for entry in await bench.ledger()][:2] == ["pay_1-create"] * 2

"""Repeated idempotency keys while the fingerprint key rotates, over the wire and counted at Stripe."""

from __future__ import annotations

import pytest

from tests.fakes.payments_service import payments_service, refusal
from tests.fakes.sandbox_bench import Bench

OLD, NEW, OTHER = ("o" * 32, "n" * 32, "x" * 32)


@pytest.mark.parametrize("then", [f"{NEW},{OLD}", f"{NEW},{OTHER},{OLD}", NEW, ""])
async def test_repeated_key_after_rotation_returns_the_same_payment(database_url: str, bench: Bench, then: str) -> None:
    async with payments_service(database_url, bench.url, fingerprint_keys=OLD) as payments:
        first = await payments.create()
    async with payments_service(database_url, bench.url, **({"fingerprint_keys": then} if then else {})) as payments:
        again = await payments.create()
        if OLD in then:
            reused = await refusal(payments.create(amount=9900))
            assert reused.reason == "IDEMPOTENCY_KEY_REUSED"
            assert [violation.field for violation in reused.violations] == ["amount.amount_minor"]

    assert again.payment_id == first.payment_id
    assert len([entry for entry in await bench.ledger() if entry["method"] == "POST"]) == 1

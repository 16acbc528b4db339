"""A payment provider in memory: it returns the state that the test sets, and records its requests."""

import json
from dataclasses import dataclass, field, replace

from services.payments.provider import Decline, PaymentSnapshot, Status
from services.payments.requests import PaymentRequest


def snapshot(payment_id: str, status: Status, *, declined: bool = False) -> PaymentSnapshot:
    captured = 15000 if status == "SUCCEEDED" else 0
    return PaymentSnapshot(
        intent_id="pi_1",
        payment_id=payment_id,
        status=status,
        amount_minor=15000,
        currency="BRL",
        captured_minor=captured,
        livemode=False,
        client_secret="pi_1_secret_1",
        decline=Decline("generic_decline") if declined else None,
    )


@dataclass
class FakeProvider:
    snapshot: PaymentSnapshot
    created: list[str] = field(default_factory=list)
    reads: int = 0

    def prepare(self, payment_id: str, request: PaymentRequest) -> bytes:
        return json.dumps({"payment_id": payment_id, "amount": request.amount_minor}).encode()

    async def create(self, prepared: bytes, key: str) -> PaymentSnapshot:
        self.created.append(key)
        return replace(self.snapshot, payment_id=json.loads(prepared)["payment_id"])

    async def retrieve(self, intent_id: str) -> PaymentSnapshot:
        assert intent_id == self.snapshot.intent_id
        self.reads += 1
        return self.snapshot

    async def cancel(self, intent_id: str, key: str) -> PaymentSnapshot:
        assert intent_id == self.snapshot.intent_id
        assert key
        self.snapshot = replace(self.snapshot, status="CANCELED")
        return self.snapshot

    async def find(self, payment_id: str, since: float, until: float) -> PaymentSnapshot | None:
        assert since < until
        return self.snapshot if payment_id == self.snapshot.payment_id else None

"""A payment provider in memory: it stands where the test puts it, and remembers what it was asked."""

import json
from dataclasses import dataclass, field, replace

from services.payments.payment import Order
from services.payments.provider import Decline, Standing, Status


def standing(payment_id: str, status: Status, *, declined: bool = False) -> Standing:
    captured = 15000 if status == "SUCCEEDED" else 0
    return Standing(
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
    standing: Standing
    created: list[str] = field(default_factory=list)
    reads: int = 0

    def prepare(self, payment_id: str, order: Order) -> bytes:
        return json.dumps({"payment_id": payment_id, "amount": order.amount_minor}).encode()

    async def create(self, prepared: bytes, key: str) -> Standing:
        self.created.append(key)
        return replace(self.standing, payment_id=json.loads(prepared)["payment_id"])

    async def retrieve(self, intent_id: str) -> Standing:
        assert intent_id == self.standing.intent_id
        self.reads += 1
        return self.standing

    async def cancel(self, intent_id: str, key: str) -> Standing:
        assert intent_id == self.standing.intent_id
        assert key
        self.standing = replace(self.standing, status="CANCELED")
        return self.standing

    async def find(self, payment_id: str, since: float, until: float) -> Standing | None:
        assert since < until
        return self.standing if payment_id == self.standing.payment_id else None

"""What this service needs of a payment provider, in its own words."""

import re
from dataclasses import dataclass
from typing import Literal, Protocol

from services.payments.requests import MAX_AMOUNT, PaymentRequest

#: A Pix code has some 200 characters, an address at Stripe some 500.
MAX_TEXT = 4096
#: The last second of the year 9999.
MAX_TIME = 253_402_300_799

#: UNKNOWN: the provider has a status that we do not know; the payment stays as it stood, and is read again later.
Status = Literal[
    "AWAITING_METHOD",
    "AWAITING_CUSTOMER",
    "PROCESSING",
    "AUTHORIZED",
    "SUCCEEDED",
    "CANCELED",
    "FAILED",
    "EXPIRED",
    "UNKNOWN",
]


@dataclass(frozen=True)
class Decline:
    code: str
    advice: str = ""


@dataclass(frozen=True)
class Step:
    """What the payer has to do: `text` is the Pix code or the boleto's line. Empty and 0: the provider did not say."""

    method: Literal["PIX", "BOLETO"]
    text: str
    url: str
    expires_at: int  #: epoch seconds


@dataclass(frozen=True)
class PaymentSnapshot:
    """How a payment stood at the provider at one moment; nothing here tells which of two moments was the later."""

    intent_id: str
    payment_id: str  #: ours, empty where the object is not one of ours
    status: Status
    amount_minor: int
    currency: str
    captured_minor: int
    livemode: bool
    client_secret: str = ""
    method: str = ""  #: the contract's name without its prefix; empty: not known
    decline: Decline | None = None
    step: Step | None = None
    expired: bool = False  #: the payer's code or voucher expired unpaid
    #: Epoch seconds at which this was so, where that is known.
    at: int | None = None

    def __post_init__(self) -> None:
        """Raise ValueError where no payment can stand so: what comes from outside is checked in one place."""
        texts = (self.intent_id, self.payment_id, self.currency, self.client_secret)
        amounts = (self.amount_minor, self.captured_minor)
        times = (self.at or 0, self.step.expires_at if self.step else 0)
        if not all(text.isprintable() and len(text) <= MAX_TEXT for text in (*texts, *self._words())):
            raise ValueError("holds text that is too long or cannot be printed")
        if not re.fullmatch("[A-Z]{3}", self.currency):
            raise ValueError("holds a currency that is none")
        if not all(0 <= amount <= MAX_AMOUNT for amount in amounts):
            raise ValueError("holds an amount that cannot be paid")
        if not all(0 <= time <= MAX_TIME for time in times):
            raise ValueError("holds a time that is none")

    def _words(self) -> tuple[str, ...]:
        step = (self.step.text, self.step.url) if self.step else ()
        return (*step, self.decline.code, self.decline.advice) if self.decline else step


class Provider(Protocol):
    """
    All raise ServiceErrors. ProviderRejected and ProviderRefusedInput are answers for good, and readings never raise
    them. With OutcomeUnknown, or any error that is not `definite`, the payment may have been made: repeat with the same
    key. An OutcomeUnknown that is `kept` will be repeated by the provider: read instead.
    """

    def prepare(self, payment_id: str, request: PaymentRequest) -> bytes:
        """Everything `create` sends, fixed once: a key is only ever repeated with the same bytes."""
        ...

    async def create(self, prepared: bytes, key: str) -> PaymentSnapshot: ...

    async def retrieve(self, intent_id: str) -> PaymentSnapshot: ...

    async def cancel(self, intent_id: str, key: str) -> PaymentSnapshot:
        """Close an unpaid payment for good; ProviderRejected: it has moved on meanwhile."""
        ...

    async def find(self, payment_id: str, since: float, until: float) -> PaymentSnapshot | None:
        """Look for a payment made between two moments (epoch seconds) whose id at the provider is not known."""
        ...

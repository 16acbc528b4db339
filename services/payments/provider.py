"""The interface of a payment provider, in the words of this service."""

import re
from dataclasses import dataclass
from typing import Literal, Protocol

from services.payments.requests import MAX_AMOUNT, PaymentRequest

#: A Pix code has about 200 characters, a URL at Stripe about 500.
MAX_TEXT = 4096
#: The last second of the year 9999.
MAX_TIME = 253_402_300_799

#: UNKNOWN: the provider returned a status that we do not know. The payment keeps its status and is read again later.
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
    """The payer's next step: `text` is the Pix code or the boleto's line. Empty or 0: not known."""

    method: Literal["PIX", "BOLETO"]
    text: str
    url: str
    expires_at: int  #: epoch seconds


@dataclass(frozen=True)
class PaymentSnapshot:
    """A payment's state at the provider at one time. Two snapshots do not tell which one is newer."""

    intent_id: str
    payment_id: str  #: our id; empty if the object is not ours
    status: Status
    amount_minor: int
    currency: str
    captured_minor: int
    livemode: bool
    client_secret: str = ""
    method: str = ""  #: the contract's name without its prefix; empty if unknown
    decline: Decline | None = None
    step: Step | None = None
    expired: bool = False  #: the payer's code or voucher expired unpaid
    #: Epoch seconds of this state, if known.
    at: int | None = None

    def __post_init__(self) -> None:
        """Raise ValueError for values that no payment can have: this is the one check of the provider's data."""
        texts = (self.intent_id, self.payment_id, self.currency, self.client_secret)
        amounts = (self.amount_minor, self.captured_minor)
        times = (self.at or 0, self.step.expires_at if self.step else 0)
        if not all(text.isprintable() and len(text) <= MAX_TEXT for text in (*texts, *self._words())):
            raise ValueError("every text must be printable and at most 4096 characters")
        if not re.fullmatch("[A-Z]{3}", self.currency):
            raise ValueError("the currency must be three capital letters")
        if not all(0 <= amount <= MAX_AMOUNT for amount in amounts):
            raise ValueError(f"every amount must be 0 to {MAX_AMOUNT}")
        if not all(0 <= time <= MAX_TIME for time in times):
            raise ValueError("every time must be before the year 10000")

    def _words(self) -> tuple[str, ...]:
        step = (self.step.text, self.step.url) if self.step else ()
        return (*step, self.decline.code, self.decline.advice) if self.decline else step


class Provider(Protocol):
    """
    All methods raise ServiceErrors. ProviderRejected and ProviderRefusedInput are final, and readings never raise them.
    With OutcomeUnknown, or any error that is not `definite`, the payment may exist: repeat with the same key. The
    provider repeats an OutcomeUnknown that is `kept`: read instead.
    """

    def prepare(self, payment_id: str, request: PaymentRequest) -> bytes:
        """Return the bytes that `create` sends. A repeated key must send the same bytes."""
        ...

    async def create(self, prepared: bytes, key: str) -> PaymentSnapshot: ...

    async def retrieve(self, intent_id: str) -> PaymentSnapshot: ...

    async def cancel(self, intent_id: str, key: str) -> PaymentSnapshot:
        """Cancel an unpaid payment. Raise ProviderRejected if its status no longer allows that."""
        ...

    async def find(self, payment_id: str, since: float, until: float) -> PaymentSnapshot | None:
        """Find a payment without its id at the provider, created between two times (epoch seconds)."""
        ...

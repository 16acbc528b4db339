"""Stripe's refusals, and the cards that are refused."""

from typing import Any, NamedTuple

DOCS = "https://docs.stripe.com/error-codes/"


class StripeError(Exception):
    #: A refusal made while the request was carried out is replayed for its idempotency key; one made before is not.
    def __init__(
        self,
        status: int,
        message: str,
        *,
        type: str = "invalid_request_error",
        code: str | None = None,
        param: str | None = None,
        stored: bool = False,
        **more: Any,
    ) -> None:
        super().__init__(message)
        self.status, self.stored = status, stored
        known = {"code": code, "doc_url": code and DOCS + code.replace("_", "-"), "param": param, **more}
        self.error = {
            "message": message,
            "type": type,
            **{name: value for name, value in known.items() if value is not None},
        }


class Decline(NamedTuple):
    code: str
    decline_code: str | None
    advice_code: str | None
    message: str


TRY_LATER, DO_NOT, NEW_DETAILS = "try_again_later", "do_not_try_again", "confirm_card_data"

#: What happens to Stripe's test cards: https://docs.stripe.com/testing
DECLINES = {
    "pm_card_visa_chargeDeclined": Decline("card_declined", "generic_decline", TRY_LATER, "The card was declined."),
    "pm_card_chargeDeclined": Decline("card_declined", "generic_decline", TRY_LATER, "The card was declined."),
    "pm_card_chargeDeclinedInsufficientFunds": Decline(
        "card_declined", "insufficient_funds", TRY_LATER, "The card has too little money on it."
    ),
    "pm_card_visa_chargeDeclinedInsufficientFunds": Decline(
        "card_declined", "insufficient_funds", TRY_LATER, "The card has too little money on it."
    ),
    "pm_card_chargeDeclinedLostCard": Decline("card_declined", "lost_card", DO_NOT, "The card was declined."),
    "pm_card_chargeDeclinedStolenCard": Decline("card_declined", "stolen_card", DO_NOT, "The card was declined."),
    "pm_card_chargeDeclinedFraudulent": Decline("card_declined", "fraudulent", DO_NOT, "The card was declined."),
    "pm_card_chargeDeclinedExpiredCard": Decline("expired_card", "expired_card", NEW_DETAILS, "The card has expired."),
    "pm_card_chargeDeclinedIncorrectCvc": Decline(
        "incorrect_cvc", "incorrect_cvc", NEW_DETAILS, "The card's security code is wrong."
    ),
    "pm_card_chargeDeclinedProcessingError": Decline(
        "processing_error", "processing_error", TRY_LATER, "The card could not be processed. Try again a little later."
    ),
}
BY_CUSTOMER = Decline("card_declined", "generic_decline", TRY_LATER, "The card was declined.")
EXPIRED = Decline("payment_intent_payment_attempt_expired", None, None, "The customer did not pay in time.")

#: These ask the customer's bank first; the payment page stands in for it.
ASK_THE_CUSTOMER = frozenset(
    {"pm_card_authenticationRequired", "pm_card_threeDSecureRequired", "pm_card_threeDSecure2Required"}
)


def missing(id: str, kind: str, param: str) -> StripeError:
    return StripeError(404, f"No such {kind}: '{id}'", code="resource_missing", param=param)


def wrong(param: str, message: str, code: str | None = None) -> StripeError:
    return StripeError(400, message, code=code, param=param)

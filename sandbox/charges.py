"""The charge behind a PaymentIntent: one try at taking the money."""

import time

from sandbox.state import Json, random_id
from sandbox.stripe_errors import Decline

ADDRESS: Json = dict.fromkeys(("city", "country", "line1", "line2", "postal_code", "state"))

ABSENT: Json = dict.fromkeys(
    (
        "application",
        "application_fee",
        "application_fee_amount",
        "balance_transaction",
        "calculated_statement_descriptor",
        "failure_balance_transaction",
        "on_behalf_of",
        "receipt_number",
        "review",
        "shipping",
        "source",
        "source_transfer",
        "statement_descriptor",
        "statement_descriptor_suffix",
        "transfer_data",
        "transfer_group",
    )
)


def charge_of(intent: Json, kind: str, *, captured: bool, decline: Decline | None = None) -> Json:
    paid = decline is None
    outcome = {
        "advice_code": decline and decline.advice_code,
        "network_advice_code": None,
        "network_decline_code": None,
        "network_status": "approved_by_network" if paid else "declined_by_network",
        "reason": decline and decline.decline_code,
        "seller_message": "Payment complete." if paid else "The bank declined the payment.",
        "type": "authorized" if paid else "issuer_declined",
    }
    return {
        "id": random_id("ch_3"),
        "object": "charge",
        "amount": intent["amount"],
        "amount_captured": intent["amount"] if captured else 0,
        "amount_refunded": 0,
        "billing_details": {"address": ADDRESS, "email": None, "name": None, "phone": None, "tax_id": None},
        "captured": captured,
        "created": int(time.time()),
        "currency": intent["currency"],
        "customer": intent["customer"],
        "description": intent["description"],
        "disputed": False,
        "failure_code": decline and decline.code,
        "failure_message": decline and decline.message,
        "fraud_details": {},
        "livemode": False,
        "metadata": intent["metadata"],
        "outcome": outcome,
        "paid": paid,
        "payment_intent": intent["id"],
        "payment_method": intent["payment_method"],
        "payment_method_details": {"type": kind, kind: CARD if kind == "card" else {}},
        "receipt_email": intent["receipt_email"],
        "receipt_url": None,
        "refunded": False,
        "status": "succeeded" if paid else "failed",
        **ABSENT,
    }


CARD: Json = {
    "brand": "visa",
    "checks": {"address_line1_check": None, "address_postal_code_check": None, "cvc_check": "pass"},
    "country": "BR",
    "exp_month": 8,
    "exp_year": 2034,
    "fingerprint": "sandboxsandbox01",
    "funding": "credit",
    "last4": "4242",
    "network": "visa",
    "wallet": None,
}


def payment_method_of(intent: Json) -> Json:
    return {
        "id": intent["payment_method"] or random_id("pm_1"),
        "object": "payment_method",
        "billing_details": {"address": ADDRESS, "email": None, "name": None, "phone": None},
        "card": CARD,
        "created": int(time.time()),
        "customer": intent["customer"],
        "livemode": False,
        "metadata": {},
        "type": "card",
    }

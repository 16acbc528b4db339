"""What a PaymentIntent goes through at Stripe, and the events that tell of it."""

import json
import sqlite3
import time
from dataclasses import dataclass

from sandbox import webhooks
from sandbox.charges import charge_of, payment_method_of
from sandbox.intent_fields import KEPT, blank_intent, voucher
from sandbox.state import Json, get, put, random_id
from sandbox.stripe_errors import ASK_THE_CUSTOMER, BY_CUSTOMER, DECLINES, EXPIRED, Decline, StripeError

API_VERSION = "2026-10-28.endive"
OPEN = ("requires_payment_method", "requires_confirmation", "requires_action")
#: The later of two is always a webhook's distance away from the first; real ones arrive in any order.
EVENT_DELAY = 0.05


@dataclass
class Desk:
    """Works on PaymentIntents in one transaction, on behalf of one request."""

    db: sqlite3.Connection
    origin: str  #: where the customer's pages are
    request_id: str | None = None
    idempotency_key: str | None = None
    _told: int = 0

    def create(self, params: Json) -> Json:
        id = random_id("pi_3")
        kinds = params.get("allowed_payment_method_types") or ["card"]
        if (params.get("automatic_payment_methods") or {}).get("enabled") and params["currency"] == "brl":
            kinds = ["card", "boleto", "pix"]
        method_kind = (params.get("payment_method_data") or {}).get("type")
        intent = blank_intent() | {
            "id": id,
            "amount": params["amount"],
            "client_secret": random_id(f"{id}_secret_"),
            "created": int(time.time()),
            "currency": params["currency"],
            "metadata": params.get("metadata") or {},
            "payment_method_types": kinds if method_kind in (None, *kinds) else [*kinds, method_kind],
            "status": "requires_payment_method",
        }
        if params.get("automatic_payment_methods"):
            intent["automatic_payment_methods"] = {"allow_redirects": "always", **params["automatic_payment_methods"]}
        intent |= {name: params[name] for name in KEPT if params.get(name) is not None}
        if intent["payment_method"]:
            intent["status"] = "requires_confirmation"
        self._save(intent)
        self._tell("payment_intent.created", intent)
        return self.confirm(intent, params) if params.get("confirm") else intent

    def update(self, intent: Json, params: Json) -> Json:
        if intent["status"] not in OPEN:
            raise self._conflict(intent, "updated")
        changes = {name: params[name] for name in (*KEPT, "amount", "currency") if params.get(name) is not None}
        # An empty value deletes a key.
        metadata = intent["metadata"] | (params.get("metadata") or {})
        intent |= {**changes, "metadata": {key: value for key, value in metadata.items() if value != ""}}
        if intent["payment_method"] and intent["status"] == "requires_payment_method":
            intent["status"] = "requires_confirmation"
        self._save(intent)
        return intent

    def confirm(self, intent: Json, params: Json) -> Json:
        if intent["status"] not in OPEN:
            raise self._conflict(intent, "confirmed")
        made = params.get("payment_method_data")
        method = params.get("payment_method") or intent["payment_method"]
        if made:
            kind, method = made["type"], random_id("pm_1")
        elif method:
            kind = "card"
        else:
            raise StripeError(
                400,
                "This PaymentIntent cannot be confirmed without a payment method.",
                code="payment_intent_unexpected_state",
                stored=True,
                payment_intent=intent,
            )
        intent |= {"payment_method": method, "last_payment_error": None, "next_action": None}
        intent |= {name: params[name] for name in ("capture_method", "receipt_email") if params.get(name) is not None}
        if kind in ("pix", "boleto"):
            return self._wait_for_customer(intent, voucher(kind, intent, params, self.origin))
        if method in ASK_THE_CUSTOMER:
            page = {"url": f"{self.origin}/pay/{intent['id']}", "return_url": params.get("return_url")}
            return self._wait_for_customer(intent, {"type": "redirect_to_url", "redirect_to_url": page})
        if method in DECLINES:
            self._fail(intent, DECLINES[method])
            error = intent["last_payment_error"]
            raise StripeError(402, stored=True, payment_intent=intent, **error)
        return self._charge(intent)

    def pay(self, intent: Json) -> Json:
        """The customer pays, on a page or in the bank's application."""
        if intent["status"] not in OPEN:
            raise self._conflict(intent, "paid")
        action = intent["next_action"] or {}
        if not intent["payment_method"]:
            intent["payment_method"] = "pm_card_visa"
        if action.get("type") == "boleto_display_details":
            intent |= {"status": "processing", "next_action": None}
            self._save(intent)
            self._tell("payment_intent.processing", intent)
        kind = str(action.get("type", "")).split("_")[0]
        return self._charge(intent, kind=kind if kind in ("pix", "boleto") else "card")

    def decline(self, intent: Json) -> Json:
        if intent["status"] not in OPEN:
            raise self._conflict(intent, "declined")
        action = (intent["next_action"] or {}).get("type", "card")
        if not intent["payment_method"]:
            intent["payment_method"] = "pm_card_chargeDeclined"
        self._fail(intent, EXPIRED if action.startswith(("pix", "boleto")) else BY_CUSTOMER)
        return intent

    def cancel(self, intent: Json, reason: str | None) -> Json:
        if intent["status"] not in (*OPEN, "requires_capture"):
            raise self._conflict(intent, "canceled")
        intent |= {
            "status": "canceled",
            "canceled_at": int(time.time()),
            "cancellation_reason": reason,
            "amount_capturable": 0,
            "next_action": None,
        }
        self._save(intent)
        self._tell("payment_intent.canceled", intent)
        return intent

    def capture(self, intent: Json, amount: int | None) -> Json:
        if intent["status"] != "requires_capture":
            raise self._conflict(intent, "captured")
        taken = intent["amount_capturable"] if amount is None else amount
        if not 0 < taken <= intent["amount_capturable"]:
            raise StripeError(400, "More than can be captured.", code="amount_too_large", param="amount_to_capture")
        intent |= {"status": "succeeded", "amount_received": taken, "amount_capturable": 0}
        charge = get(self.db, "charge", intent["latest_charge"]) or {}
        charge |= {"captured": True, "amount_captured": taken, "amount_refunded": intent["amount"] - taken}
        put(self.db, "charge", charge, id=charge["id"], label=intent["id"])
        self._save(intent)
        self._tell("charge.captured", charge)
        self._tell("payment_intent.succeeded", intent)
        return intent

    def _wait_for_customer(self, intent: Json, action: Json) -> Json:
        intent |= {"status": "requires_action", "next_action": action}
        self._save(intent)
        self._tell("payment_intent.requires_action", intent)
        return intent

    def _charge(self, intent: Json, kind: str = "card") -> Json:
        manual = intent["capture_method"] == "manual"
        charge = charge_of(intent, kind, captured=not manual)
        intent |= {"latest_charge": charge["id"], "next_action": None, "last_payment_error": None, "processing": None}
        if manual:
            intent |= {"status": "requires_capture", "amount_capturable": intent["amount"]}
        else:
            intent |= {"status": "succeeded", "amount_received": intent["amount"]}
        put(self.db, "charge", charge, id=charge["id"], label=intent["id"])
        self._save(intent)
        self._tell("charge.succeeded", charge)
        self._tell("payment_intent.amount_capturable_updated" if manual else "payment_intent.succeeded", intent)
        return intent

    def _fail(self, intent: Json, decline: Decline) -> None:
        charge = charge_of(intent, "card", captured=False, decline=decline)
        error = {"type": "card_error", **decline._asdict(), "charge": charge["id"]}
        error["payment_method"] = payment_method_of(intent)
        intent |= {
            "status": "requires_payment_method",
            "last_payment_error": {name: value for name, value in error.items() if value is not None},
            "latest_charge": charge["id"],
            "next_action": None,
            "payment_method": None,
        }
        put(self.db, "charge", charge, id=charge["id"], label=intent["id"])
        self._save(intent)
        self._tell("charge.failed", charge)
        self._tell("payment_intent.payment_failed", intent)

    def _save(self, intent: Json) -> None:
        put(self.db, "payment_intent", intent, id=intent["id"], label=intent["metadata"].get("topsmile_payment_id", ""))

    def _tell(self, type: str, subject: Json) -> None:
        event: Json = {
            "id": random_id("evt_3"),
            "object": "event",
            "api_version": API_VERSION,
            "created": int(time.time()),
            "data": {"object": subject},
            "livemode": False,
            "pending_webhooks": 1,
            "request": {"id": self.request_id, "idempotency_key": self.idempotency_key},
            "type": type,
        }
        put(self.db, "event", event, id=event["id"], label=type)
        body = json.dumps(event, indent=2, ensure_ascii=False).encode()
        self._told += 1
        webhooks.add(
            self.db,
            "stripe",
            subject=type,
            object_id=event["id"],
            url="/webhooks/stripe",
            body=body,
            after=EVENT_DELAY * self._told,
        )

    def _conflict(self, intent: Json, verb: str) -> StripeError:
        return StripeError(
            400,
            f"This PaymentIntent could not be {verb} because it has a status of {intent['status']}.",
            code="payment_intent_unexpected_state",
            stored=True,
            payment_intent=intent,
        )

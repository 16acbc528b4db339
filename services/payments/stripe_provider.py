"""
Call Stripe through its own SDK, over this process's one HTTP client.

Raw requests use the SDK's encoding, headers, versions and errors. They skip its objects, which cost more CPU than the
rest of a call.
"""

import json
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, NoReturn, cast

import stripe
from stripe import HTTPClient, StripeClient, StripeError

from services.brazil.folding import to_ascii
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
from services.chassis.outbound.client import Outbound, retry_after
from services.chassis.violations import Rule
from services.payments.provider import PaymentSnapshot
from services.payments.requests import PaymentRequest
from services.payments.stripe_intents import OURS, code_of, decline_of, snapshot_of, unexpected

INTENTS = "/v1/payment_intents"
#: A page has 100 PaymentIntents. Stripe allows 100 requests per second, so no narrow window has more pages than this.
MAX_PAGES = 100

stripe.enable_telemetry = False  # the SDK has only this global switch

# The first matching row decides: status, error code, error type. None matches any value.
REFUSALS: list[tuple[int, str | None, str | None, type[ExternalServiceError]]] = [
    (400, None, "idempotency_error", ProviderKeyReused),
    (400, "rate_limit", None, ProviderThrottled),
    (400, "payment_intent_unexpected_state", None, ProviderRejected),
    (400, None, None, ProviderRefusedInput),
    (401, None, None, CredentialsRefused),
    (402, None, None, ProviderRejected),
    (403, None, None, CredentialsRefused),
    (404, None, None, ProviderNotFound),
    (409, None, None, ProviderBusy),
    (429, "lock_timeout", None, ProviderBusy),
    (429, None, None, ProviderThrottled),
]
# These codes concern the account or the key, whatever the status: no other request would succeed either.
ACCOUNT_CODES = frozenset(
    {
        "account_closed",
        "account_invalid",
        "api_key_expired",
        "livemode_mismatch",
        "platform_api_key_expired",
        "secret_key_required",
        "testmode_charges_only",
    }
)
# The possible refusals of a reading. Any other one, including 403, concerns one object: creations still work.
READ_REFUSALS = (CredentialsRefused, ProviderNotFound, ProviderBusy, ProviderThrottled)
EXPIRIES = {"PIX": "expires_after_seconds", "BOLETO": "expires_after_days"}
# Our contract's fields by Stripe's parameters.
FIELDS = {
    "amount": "amount.amount_minor",
    "currency": "amount.currency",
    "description": "description",
    "capture_method": "capture",
    "allowed_payment_method_types": "methods",
    "payment_method_data[type]": "methods",
    "payment_method_data[boleto][tax_id]": "payer.tax_id",
    "payment_method_data[billing_details][tax_id]": "payer.tax_id",
    "payment_method_data[billing_details][email]": "payer.email",
    "payment_method_data[billing_details][name]": "payer.name",
    "payment_method_data[billing_details][phone]": "payer.phone",
    "payment_method_options[pix][expires_after_seconds]": "expiry",
    "payment_method_options[boleto][expires_after_days]": "expiry",
    **{
        f"payment_method_data[billing_details][address][{name}]": f"payer.address.{name}"
        for name in ("line1", "line2", "city", "state", "postal_code", "country")
    },
}


class Transport(HTTPClient):
    """Send the SDK's requests through our client. Its errors pass through the SDK unchanged."""

    name = "aiohttp"

    def __init__(self, http: Outbound, base: str) -> None:
        super().__init__()
        self._http = http
        self._base = base

    async def request_async(
        self, method: str, url: str, headers: Mapping[str, str], post_data: str | None = None
    ) -> tuple[bytes, int, Mapping[str, str]]:
        data = None if post_data is None else post_data.encode()
        response = await self._http.request(method.upper(), url.removeprefix(self._base), data=data, headers=headers)
        return response.body, response.status, response.headers

    async def close_async(self) -> None:
        """Do nothing: the owner of the client closes it."""


class StripeProvider:
    def __init__(self, http: Outbound, base: str, key: str) -> None:
        transport = Transport(http, base)
        self._client = StripeClient(key, base_addresses={"api": base}, http_client=transport, max_network_retries=0)

    def prepare(self, payment_id: str, request: PaymentRequest) -> bytes:
        params: dict[str, Any] = {
            "amount": request.amount_minor,
            "currency": request.currency.lower(),
            # At Stripe an empty value deletes the key.
            "metadata": {**{key: value for key, value in request.metadata.items() if value}, OURS: payment_id},
        }
        if request.description:
            params["description"] = request.description
        if request.manual_capture:
            params["capture_method"] = "manual"
        if request.methods:
            params["allowed_payment_method_types"] = [method.lower() for method in request.methods]
        else:
            params["automatic_payment_methods"] = {"enabled": True}
        if request.expiry:
            params["payment_method_options"] = {
                method.lower(): {EXPIRIES[method]: length} for method, length in request.expiry.items()
            }
        if request.confirmed_here:
            params |= {"confirm": True, "payment_method_data": _method_data(request)}
        return json.dumps(params).encode()

    async def create(self, prepared: bytes, key: str) -> PaymentSnapshot:
        params = json.loads(prepared)
        intent = _snapshot(await self._request("post", INTENTS, {**params, "idempotency_key": key}))
        if (intent.amount_minor, intent.currency) != (params["amount"], params["currency"].upper()):
            unexpected("payment_intent_amount", payment_intent=intent.intent_id)
            other = OutcomeUnknown("stripe", None, "stripe answered with a different amount than the request")
            other.provider_fault = False
            raise other
        return intent

    async def retrieve(self, intent_id: str) -> PaymentSnapshot:
        # The charge holds the method and the time. Expanded, it costs no extra request.
        return _snapshot(await self._request("get", f"{INTENTS}/{intent_id}", {"expand": ["latest_charge"]}))

    async def cancel(self, intent_id: str, key: str) -> PaymentSnapshot:
        params = {"cancellation_reason": "abandoned", "idempotency_key": key}
        return _snapshot(await self._request("post", f"{INTENTS}/{intent_id}/cancel", params))

    async def find(self, payment_id: str, since: float, until: float) -> PaymentSnapshot | None:
        # Stripe's Search finds new objects only after a delay.
        params: dict[str, Any] = {
            "created": {"gte": int(since), "lte": int(until)},
            "expand": ["data.latest_charge"],
            "limit": 100,
        }
        for _ in range(MAX_PAGES):
            page = await self._request("get", INTENTS, params)
            intents = page.get("data") if isinstance(page, Mapping) else None
            if not isinstance(intents, list):
                raise _unreadable(page, "no list of PaymentIntents")
            for intent in intents:
                if value_at(intent, "metadata", OURS) == payment_id:
                    return _snapshot(intent)
            if not intents or not page.get("has_more"):
                return None
            params["starting_after"] = value_at(intents[-1], "id")
        raise OutcomeUnknown("stripe", None, f"the payment is not among the newest {100 * MAX_PAGES} of that time")

    async def _request(self, method: str, path: str, params: Mapping[str, Any]) -> Any:
        send: Callable[..., Awaitable[Any]] = self._client.raw_request_async
        try:
            return (await send(method, path, **params)).data
        except StripeError as error:
            refuse(error, reading=method == "get")
        except (AttributeError, LookupError, TypeError, ValueError) as error:
            # The SDK fails on errors that do not have Stripe's form, for example those of a proxy.
            raise OutcomeUnknown("stripe", error, "stripe answered with a body that its SDK cannot read") from error


def _snapshot(answer: object) -> PaymentSnapshot:
    if value_at(answer, "object") != "payment_intent":
        raise _unreadable(answer, "no PaymentIntent")
    try:
        return snapshot_of(cast(Mapping[str, Any], answer))
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        raise _unreadable(answer, "a PaymentIntent that cannot be read") from error


def _unreadable(answer: object, what: str) -> OutcomeUnknown:
    """Return the error for an unreadable response. If it is a Stripe object, Stripe itself works."""
    unexpected("answer", read_as=what)
    error = OutcomeUnknown("stripe", None, f"stripe answered {what}")
    error.provider_fault = not isinstance(value_at(answer, "object"), str)
    return error


def value_at(tree: object, *names: str) -> Any:
    """Return the value at a path of keys. None if the path does not exist."""
    for name in names:
        tree = tree.get(name) if isinstance(tree, Mapping) else None
    return tree


def refuse(error: StripeError, *, reading: bool = False) -> NoReturn:
    """Raise our error for Stripe's. Stripe's own text may name a person and is not passed on."""
    payload = value_at(error.json_body, "error")
    payload = payload if isinstance(payload, Mapping) else {}
    status, code, kind = error.http_status or 0, code_of(payload.get("code")), code_of(payload.get("type"))
    what = f"stripe answered {status}: {code or kind or 'no JSON'}"
    refusal = _refusal(status, code, kind)
    if reading and (refusal not in READ_REFUSALS or status == 403):
        if status == 403:
            unexpected("reading_forbidden", code=code)
        refusal = OutcomeUnknown
    if refusal is ProviderRejected and status == 402:
        decline = decline_of(payload)
        metadata = {"decline_code": decline.code, "advice_code": decline.advice}
        raise ProviderRejected("stripe", error, what, reason="DECLINED", metadata=metadata) from error
    if refusal is ProviderRefusedInput:
        field = FIELDS.get(str(payload.get("param")), str(payload.get("param") or ""))
        violations = [Rule.REFUSED_BY_PROVIDER.at(field, provider="stripe", code=code or kind)] if field else []
        raise ProviderRefusedInput("stripe", error, what, violations=violations) from error
    headers = {name.lower(): value for name, value in (error.headers or {}).items()}
    refused = refusal("stripe", error, what, retry_after=retry_after(headers))
    if isinstance(refused, OutcomeUnknown):
        replayed = _replayed(headers)
        refused.kept = not reading and (replayed or (status == 500 and bool(payload)))
        # A repeated response says nothing about Stripe's current state.
        refused.provider_fault = None if replayed else not 400 <= status < 500 or status == 408
    if refusal in (ProviderBusy, ProviderKeyReused):
        refused.definite = False  # an earlier request with this key may have done it
    raise refused from error


def _refusal(status: int, code: str, kind: str) -> type[ExternalServiceError]:
    if code in ACCOUNT_CODES:
        return CredentialsRefused
    for of_status, of_code, of_type, refusal in REFUSALS:
        if of_status == status and of_code in (None, code) and of_type in (None, kind):
            return refusal
    return OutcomeUnknown


def _replayed(headers: Mapping[str, str]) -> bool:
    """Return whether Stripe repeated a stored response: https://docs.stripe.com/api/idempotent_requests"""
    return headers.get("idempotent-replayed") == "true"


def _method_data(request: PaymentRequest) -> dict[str, Any]:
    kind, payer = request.methods[0].lower(), request.payer
    details = _filled({"name": payer.name, "email": payer.email, "phone": payer.phone})
    if kind == "pix":
        return {"type": kind, "billing_details": details}
    # Stripe prints a boleto in ASCII.
    details["name"] = to_ascii(payer.name)
    details["address"] = _filled({name: to_ascii(value) for name, value in vars(payer.address).items()})
    return {"type": kind, "billing_details": details, "boleto": {"tax_id": payer.tax_id}}


def _filled(values: Mapping[str, str]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value}

"""
Stripe through its own SDK, over this process's one HTTP client.

Raw requests: they do the SDK's encoding, headers, versions and errors, and leave out its objects, which cost more than
all the rest of a call.
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
#: A page has 100 PaymentIntents. Stripe lets an account make 100 a second, so no narrow window has more than this.
MAX_PAGES = 100

stripe.enable_telemetry = False  # a global of the SDK's; there is no other switch

# The first row that fits decides: status, error code, error type; None is any.
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
# What Stripe says of the account or the key, whatever the status: no request of anybody's would fare better.
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
# What a refused reading may mean. Anything else, a 403 too, is about that one object: others can still be created.
READ_REFUSALS = (CredentialsRefused, ProviderNotFound, ProviderBusy, ProviderThrottled)
EXPIRIES = {"PIX": "expires_after_seconds", "BOLETO": "expires_after_days"}
# Stripe's parameters by the names they have in our contract.
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
    """Lets the SDK speak through our client, whose errors pass through it untouched."""

    name = "aiohttp"

    def __init__(self, http: Outbound, base: str) -> None:
        super().__init__()
        self._http = http
        self._base = base

    async def request_async(
        self, method: str, url: str, headers: Mapping[str, str], post_data: str | None = None
    ) -> tuple[bytes, int, Mapping[str, str]]:
        data = None if post_data is None else post_data.encode()
        answer = await self._http.request(method.upper(), url.removeprefix(self._base), data=data, headers=headers)
        return answer.body, answer.status, answer.headers

    async def close_async(self) -> None:
        """Nothing: the client belongs to whoever made it."""


class StripeProvider:
    def __init__(self, http: Outbound, base: str, key: str) -> None:
        transport = Transport(http, base)
        self._client = StripeClient(key, base_addresses={"api": base}, http_client=transport, max_network_retries=0)

    def prepare(self, payment_id: str, request: PaymentRequest) -> bytes:
        params: dict[str, Any] = {
            "amount": request.amount_minor,
            "currency": request.currency.lower(),
            # An empty value would delete the key.
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
            other = OutcomeUnknown("stripe", None, "stripe answered with another amount than it was asked for")
            other.provider_fault = False
            raise other
        return intent

    async def retrieve(self, intent_id: str) -> PaymentSnapshot:
        # The charge says how it was paid, and when: read along, it costs no request of its own.
        return _snapshot(await self._request("get", f"{INTENTS}/{intent_id}", {"expand": ["latest_charge"]}))

    async def cancel(self, intent_id: str, key: str) -> PaymentSnapshot:
        params = {"cancellation_reason": "abandoned", "idempotency_key": key}
        return _snapshot(await self._request("post", f"{INTENTS}/{intent_id}/cancel", params))

    async def find(self, payment_id: str, since: float, until: float) -> PaymentSnapshot | None:
        # Not by Search, which finds things a while after they are made.
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
        raise OutcomeUnknown("stripe", None, f"not among the newest {100 * MAX_PAGES} payments of that time")

    async def _request(self, method: str, path: str, params: Mapping[str, Any]) -> Any:
        send: Callable[..., Awaitable[Any]] = self._client.raw_request_async
        try:
            return (await send(method, path, **params)).data
        except StripeError as error:
            refuse(error, reading=method == "get")
        except (AttributeError, LookupError, TypeError, ValueError) as error:
            # The SDK trips over errors that are not in Stripe's form: those of a proxy, for example.
            raise OutcomeUnknown("stripe", error, "stripe answered something that its SDK cannot read") from error


def _snapshot(answer: object) -> PaymentSnapshot:
    if value_at(answer, "object") != "payment_intent":
        raise _unreadable(answer, "no PaymentIntent")
    try:
        return snapshot_of(cast(Mapping[str, Any], answer))
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        raise _unreadable(answer, "a PaymentIntent that cannot be read") from error


def _unreadable(answer: object, what: str) -> OutcomeUnknown:
    """Say that an answer cannot be used. One of Stripe's objects, of whatever form, shows that Stripe is well."""
    unexpected("answer", read_as=what)
    error = OutcomeUnknown("stripe", None, f"stripe answered {what}")
    error.provider_fault = not isinstance(value_at(answer, "object"), str)
    return error


def value_at(tree: object, *names: str) -> Any:
    """Return what lies at a path; None where the path leaves the objects."""
    for name in names:
        tree = tree.get(name) if isinstance(tree, Mapping) else None
    return tree


def refuse(error: StripeError, *, reading: bool = False) -> NoReturn:
    """Say in our words what Stripe's error means. Its own text may name a person and stays here."""
    told = value_at(error.json_body, "error")
    told = told if isinstance(told, Mapping) else {}
    status, code, kind = error.http_status or 0, code_of(told.get("code")), code_of(told.get("type"))
    what = f"stripe answered {status}: {code or kind or 'no JSON'}"
    refusal = _refusal(status, code, kind)
    if reading and (refusal not in READ_REFUSALS or status == 403):
        if status == 403:
            unexpected("reading_forbidden", code=code)
        refusal = OutcomeUnknown
    if refusal is ProviderRejected and status == 402:
        decline = decline_of(told)
        about = {"decline_code": decline.code, "advice_code": decline.advice}
        raise ProviderRejected("stripe", error, what, reason="DECLINED", metadata=about) from error
    if refusal is ProviderRefusedInput:
        field = FIELDS.get(str(told.get("param")), str(told.get("param") or ""))
        violations = [Rule.REFUSED_BY_PROVIDER.at(field, provider="stripe", code=code or kind)] if field else []
        raise ProviderRefusedInput("stripe", error, what, violations=violations) from error
    headers = {name.lower(): value for name, value in (error.headers or {}).items()}
    refused = refusal("stripe", error, what, retry_after=retry_after(headers))
    if isinstance(refused, OutcomeUnknown):
        replayed = _replayed(headers)
        refused.kept = not reading and (replayed or (status == 500 and bool(told)))
        # A repeated answer says nothing about today.
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
    """Whether Stripe repeated the stored answer to an earlier request: https://docs.stripe.com/api/idempotent_requests"""
    return headers.get("idempotent-replayed") == "true"


def _method_data(request: PaymentRequest) -> dict[str, Any]:
    kind, payer = request.methods[0].lower(), request.payer
    about = _filled({"name": payer.name, "email": payer.email, "phone": payer.phone})
    if kind == "pix":
        return {"type": kind, "billing_details": about}
    # A boleto is printed in ASCII.
    about["name"] = to_ascii(payer.name)
    about["address"] = _filled({name: to_ascii(value) for name, value in vars(payer.address).items()})
    return {"type": kind, "billing_details": about, "boleto": {"tax_id": payer.tax_id}}


def _filled(values: Mapping[str, str]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value}

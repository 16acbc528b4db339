"""Which parameters Stripe's operations take at this API version, and their types."""

import re
from dataclasses import dataclass
from typing import Any

from sandbox.form import value_at
from sandbox.state import Json
from sandbox.stripe_errors import StripeError, wrong


@dataclass(frozen=True)
class Operation:
    known: frozenset[str]
    required: tuple[str, ...] = ()


def names(text: str) -> frozenset[str]:
    return frozenset(text.split())


CONFIRMING = names(
    "allowed_payment_method_types amount_details capture_method confirmation_token error_on_requires_action"
    " excluded_payment_method_types hooks mandate mandate_data off_session payment_details payment_method"
    " payment_method_data payment_method_options radar_options receipt_email return_url setup_future_usage shipping"
    " use_stripe_sdk"
)
DESCRIBING = names(
    "amount application_fee_amount currency customer customer_account description metadata payment_method_configuration"
    " statement_descriptor statement_descriptor_suffix transfer_data transfer_group"
)
PAGING = names("created customer customer_account ending_before limit starting_after")

CREATE = Operation(
    CONFIRMING | DESCRIBING | names("automatic_payment_methods confirm confirmation_method on_behalf_of"),
    required=("amount", "currency"),
)
UPDATE = Operation(
    (CONFIRMING | DESCRIBING)
    - names(
        "confirmation_token error_on_requires_action mandate mandate_data off_session radar_options return_url"
        " use_stripe_sdk"
    )
)
CONFIRM = Operation(CONFIRMING | {"amount_to_confirm", "client_secret"})
CANCEL = Operation(names("cancellation_reason"))
CAPTURE = Operation(
    names(
        "amount_details amount_to_capture application_fee_amount final_capture hooks metadata payment_details"
        " statement_descriptor statement_descriptor_suffix transfer_data"
    )
)
LIST_INTENTS = Operation(PAGING)
LIST_EVENTS = Operation((PAGING - {"customer", "customer_account"}) | names("delivery_success type types"))

INTEGERS = ("amount", "amount_to_capture", "application_fee_amount", "limit")
BOOLEANS = ("confirm", "off_session", "error_on_requires_action", "final_capture", "use_stripe_sdk", "delivery_success")
TABLES = (
    "automatic_payment_methods",
    "metadata",
    "payment_method_data",
    "payment_method_options",
    "shipping",
)
#: Taken and not looked at.
OPAQUE = ("amount_details", "hooks", "mandate_data", "payment_details", "radar_options", "transfer_data")
LISTS = ("allowed_payment_method_types", "excluded_payment_method_types", "types")
#: https://docs.stripe.com/currencies
CURRENCIES = names(
    "aed afn all amd ang aoa ars aud awg azn bam bbd bdt bgn bhd bif bmd bnd bob brl bsd bwp byn bzd cad cdf chf clp"
    " cny cop crc cve czk djf dkk dop dzd egp etb eur fjd fkp gbp gel gip gmd gnf gtq gyd hkd hnl htg huf idr ils inr"
    " isk jmd jod jpy kes kgs khr kmf krw kwd kyd kzt lak lbp lkr lrd lsl mad mdl mga mkd mmk mnt mop mur mvr mwk mxn"
    " myr mzn nad ngn nio nok npr nzd omr pab pen pgk php pkr pln pyg qar ron rsd rub rwf sar sbd scr sek sgd shp sle"
    " sos srd std szl thb tjs tnd top try ttd twd tzs uah ugx usd uyu uzs vnd vuv wst xaf xcd xcg xof xpf yer zar zmw"
)
#: What a voucher needs, below billing_details.
BOLETO_NEEDS = (
    "name",
    "email",
    "address.line1",
    "address.city",
    "address.state",
    "address.postal_code",
    "address.country",
)
EXPIRIES = {"expires_after_seconds": (60, 1_209_600), "expires_after_days": (0, 60)}
CHOICES = {
    "cancellation_reason": ("abandoned", "duplicate", "fraudulent", "requested_by_customer"),
    "capture_method": ("automatic", "automatic_async", "manual"),
    "confirmation_method": ("automatic", "manual"),
    "setup_future_usage": ("off_session", "on_session"),
}


def checked(operation: Operation, params: Json) -> Json:
    params = {name: value for name, value in params.items() if name != "expand"}
    for name in params:
        if name == "payment_method_types":
            message = "payment_method_types is not taken any more, automatic_payment_methods is."
            raise wrong(name, message, "payment_method_types_no_longer_supported")
        if name not in operation.known:
            raise wrong(name, f"Received unknown parameter: {name}", "parameter_unknown")
    for name in operation.required:
        if params.get(name) in (None, ""):
            raise wrong(name, f"Missing required param: {name}.", "parameter_missing")
    typed = {name: _typed(name, value) for name, value in params.items()}
    _check_money(typed)
    _check_methods(typed)
    if len(typed.get("metadata") or {}) > 50:
        raise wrong("metadata", "Metadata can have up to 50 keys.")
    for key, value in (typed.get("metadata") or {}).items():
        if len(key) > 40 or not isinstance(value, str) or len(value) > 500:
            raise wrong(
                f"metadata[{key}]", "A metadata key has up to 40 characters, its value is a string of up to 500."
            )
    return typed


def _typed(name: str, value: Any) -> Any:
    if name in INTEGERS:
        return _integer(name, value)
    if name in BOOLEANS:
        return _boolean(name, value)
    if name in TABLES and value != "" and not isinstance(value, dict):
        raise wrong(name, f"Invalid {name}: must be a hash", "parameter_invalid_hash")
    if name in LISTS and value != "" and not (isinstance(value, list) and all(isinstance(item, str) for item in value)):
        raise wrong(name, f"Invalid {name}: must be an array", "parameter_invalid_array")
    if not isinstance(value, str) and name not in (*TABLES, *LISTS, *OPAQUE, "created"):
        raise wrong(name, f"Invalid string: {value}", "parameter_invalid_string")
    if name in CHOICES and value not in CHOICES[name]:
        raise wrong(name, f"Invalid {name}: must be one of {', '.join(CHOICES[name])}")
    if name == "created" and isinstance(value, dict):
        return {bound: _integer(f"created[{bound}]", number) for bound, number in value.items() if _known_bound(bound)}
    if name == "created":
        return _integer(name, value)
    if name == "automatic_payment_methods" and value:
        return value | {"enabled": _boolean(f"{name}[enabled]", value.get("enabled", ""))}
    return value


def _known_bound(bound: str) -> bool:
    if bound not in ("gt", "gte", "lt", "lte"):
        raise wrong(f"created[{bound}]", f"Received unknown parameter: created[{bound}]", "parameter_unknown")
    return True


def _integer(name: str, value: Any) -> int:
    if not isinstance(value, str) or not re.fullmatch(r"-?\d{1,18}", value):
        raise wrong(name, f"Invalid integer: {value}", "parameter_invalid_integer")
    return int(value)


def _boolean(name: str, value: Any) -> bool:
    if value not in ("true", "false"):
        raise wrong(name, f"Invalid boolean: {value}", "parameter_invalid_boolean")
    return bool(value == "true")


def _check_money(params: Json) -> None:
    amount, limit = params.get("amount"), params.get("limit")
    if amount is not None and amount < 1:
        raise wrong("amount", "This value must be greater than or equal to 1.", "parameter_invalid_integer")
    if amount is not None and amount > 99_999_999:
        raise wrong("amount", "An amount has at most 8 digits.", "amount_too_large")
    if amount is not None and amount < 50:
        raise wrong("amount", "The amount is below the smallest one that can be charged.", "amount_too_small")
    if limit is not None and not 1 <= limit <= 100:
        raise wrong("limit", "A limit is between 1 and 100.", "parameter_invalid_integer")
    currency = params.get("currency")
    if currency is not None and not (isinstance(currency, str) and currency.lower() in CURRENCIES):
        raise wrong("currency", f"Invalid currency: {currency}")
    if currency is not None:
        params["currency"] = currency.lower()


def _check_methods(params: Json) -> None:
    automatic, allowed = params.get("automatic_payment_methods"), params.get("allowed_payment_method_types")
    if automatic and automatic["enabled"] and allowed:
        raise wrong(
            "allowed_payment_method_types", "Only one of automatic_payment_methods and allowed_payment_method_types."
        )
    made = params.get("payment_method_data") or {}
    kind = made.get("type")
    if made and kind not in ("card", "pix", "boleto"):
        raise wrong("payment_method_data[type]", f"Invalid payment_method_data[type]: {kind}")
    for name, options in (params.get("payment_method_options") or {}).items():
        if not isinstance(options, dict) or not all(
            str(text).isdecimal() for key, text in options.items() if "expires" in key
        ):
            raise wrong(f"payment_method_options[{name}]", f"Invalid payment_method_options[{name}]")
        for key, (minimum, maximum) in EXPIRIES.items():
            if key in options and not minimum <= int(options[key]) <= maximum:
                path = f"payment_method_options[{name}][{key}]"
                raise wrong(path, f"Must be between {minimum} and {maximum}.", "parameter_invalid_integer")
    if kind == "boleto":
        _check_voucher(made)
    if kind == "pix" and params.get("capture_method") == "manual":
        raise StripeError(400, "Pix cannot be captured later.", param="capture_method")


def _check_voucher(made: Json) -> None:
    if not value_at(made, "boleto", "tax_id"):
        raise wrong("payment_method_data[boleto][tax_id]", "Missing required param: tax_id.", "parameter_missing")
    for need in BOLETO_NEEDS:
        path = "".join(f"[{part}]" for part in f"billing_details.{need}".split("."))
        value = value_at(made, "billing_details", *need.split("."))
        if not value:
            raise wrong(f"payment_method_data{path}", f"Missing required param: {need}.", "parameter_missing")
        if not str(value).isascii():
            raise wrong(f"payment_method_data{path}", "Only ASCII characters can be printed on a boleto.")
    if value_at(made, "billing_details", "address", "country") != "BR":
        raise wrong("payment_method_data[billing_details][address][country]", "A boleto's country is BR.")

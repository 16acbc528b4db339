"""Parse requests into values, and name every wrong field."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import timedelta
from typing import NamedTuple

from services.brazil.folding import to_ascii
from services.brazil.phones import phone
from services.brazil.tax_ids import tax_id
from services.chassis.currencies import step_of
from services.chassis.rpc.validation import Fields, normalized, printable
from services.chassis.violations import Rule
from topsmile.common.v1 import common_pb2 as common
from topsmile.payments.v1 import payments_pb2 as pb

MAX_AMOUNT = 99_999_999
#: Epoch milliseconds after every payment.
LATEST = 2**62
DEFAULT_LOCALE = "pt-BR"
BRL_ONLY = ("PIX", "BOLETO")
STATES = "AC AL AP AM BA CE DF ES GO MA MT MS MG PA PB PR PE PI RJ RN RS RO RR SC SP SE TO"


class Expiry(NamedTuple):
    """The lifetimes of a code or voucher that Stripe accepts, in whole units. `default` is ours and always sent."""

    unit: timedelta
    min: int
    max: int
    default: int
    rule: Rule


EXPIRIES = {
    "PIX": Expiry(timedelta(seconds=1), 60, 1_209_600, 86_400, Rule.NOT_A_PIX_EXPIRY),
    "BOLETO": Expiry(timedelta(days=1), 1, 60, 3, Rule.NOT_A_BOLETO_EXPIRY),
}
LOCALE = re.compile(r"[A-Za-z]{2,3}(-[A-Za-z0-9]{2,8})*")


@dataclass(frozen=True)
class Address:
    line1: str
    line2: str
    city: str
    state: str
    postal_code: str
    country: str


@dataclass(frozen=True)
class Payer:
    name: str = ""
    email: str = ""
    phone: str = ""
    tax_id: str = ""
    locale: str = ""
    address: Address | None = None

    def to_proto(self) -> pb.Payer:
        return pb.Payer(**{**vars(self), "address": self.address and pb.Address(**vars(self.address))})


@dataclass(frozen=True)
class PaymentRequest:
    idempotency_key: str
    amount_minor: int
    currency: str
    appointment_id: str
    patient_id: str
    description: str
    payer: Payer
    #: Names without their prefix, sorted; empty: automatic.
    methods: tuple[str, ...]
    manual_capture: bool
    allow_another: bool
    #: By method, in the method's own unit (EXPIRIES).
    expiry: Mapping[str, int] = field(default_factory=dict)
    metadata: Mapping[str, str] = field(default_factory=dict)

    @property
    def confirmed_here(self) -> bool:
        """Return whether this service confirms the payment: a single Pix or boleto needs no form."""
        return len(self.methods) == 1 and self.methods[0] in BRL_ONLY

    @classmethod
    def from_request(cls, request: pb.CreatePaymentRequest) -> PaymentRequest:
        fields = Fields(request)
        key = fields.key()
        amount, currency = fields.money("amount")
        methods = _methods(fields, request)
        manual = request.HasField("capture") and fields.choice("capture") == "MANUAL"
        parsed = cls(
            idempotency_key=key,
            amount_minor=amount,
            currency=currency,
            appointment_id=fields.identifier("appointment_id"),
            patient_id=fields.identifier("patient_id"),
            description=fields.text("description", max_length=500),
            payer=_payer(fields, required="BOLETO" in methods),
            methods=methods,
            manual_capture=manual,
            allow_another=request.allow_another,
            expiry=_expiry(fields, methods),
            metadata=_metadata(fields, request.metadata),
        )
        _check_amount(fields, amount, currency)
        if set(methods) & set(BRL_ONLY):
            if currency != "BRL":
                fields.wrong("amount.currency", Rule.NOT_BRL)
            if manual:
                fields.wrong("capture", Rule.NO_MANUAL_CAPTURE)
        fields.check()
        return parsed

    @property
    def fingerprint_fields(self) -> dict[str, object]:
        """Return the fields that a repeated key must repeat. A default equals an omitted field."""
        payer = {f"payer.{name}": value for name, value in vars(self.payer).items() if name != "address"}
        address = vars(self.payer.address) if self.payer.address else {}
        return {
            "amount.amount_minor": self.amount_minor,
            "amount.currency": self.currency,
            "appointment_id": self.appointment_id,
            "patient_id": self.patient_id,
            "description": self.description,
            "methods": self.methods,
            "capture": self.manual_capture,
            "allow_another": self.allow_another,
            "metadata": sorted(self.metadata.items()),
            "expiry": [(name, length) for name, length in self.expiry.items() if length != EXPIRIES[name].default],
            **payer,
            "payer.locale": "" if self.payer.locale == DEFAULT_LOCALE else self.payer.locale,
            **{f"payer.address.{name}": value for name, value in address.items()},
        }

    def record(self, payment_id: str, caller: str, *, livemode: bool) -> pb.Payment:
        """Return the payment as it is before the first response of the provider."""
        return pb.Payment(
            payment_id=payment_id,
            status=pb.PAYMENT_STATUS_CREATING,
            amount=common.Money(amount_minor=self.amount_minor, currency=self.currency),
            amount_captured=common.Money(currency=self.currency),
            amount_refunded=common.Money(currency=self.currency),
            appointment_id=self.appointment_id,
            patient_id=self.patient_id,
            description=self.description,
            payer=self.payer.to_proto(),
            capture=pb.CAPTURE_METHOD_MANUAL if self.manual_capture else pb.CAPTURE_METHOD_AUTOMATIC,
            method=common.PaymentMethod.Value(
                f"PAYMENT_METHOD_{self.methods[0] if self.confirmed_here else 'UNSPECIFIED'}"
            ),
            livemode=livemode,
            metadata=self.metadata,
            caller=caller,
        )


class Position(NamedTuple):
    """The last payment of a page: the next page begins after it."""

    created_at: int = LATEST
    payment_id: str = ""


@dataclass(frozen=True)
class PaymentFilter:
    """Which payments to list; empty values match all. Times are epoch milliseconds."""

    appointment_id: str
    patient_id: str
    status: str
    created_from: int
    created_before: int

    @classmethod
    def from_request(cls, request: pb.ListPaymentsRequest, fields: Fields) -> PaymentFilter:
        first, before = fields.time("created_from_time"), fields.time("created_before_time")
        return cls(
            appointment_id=fields.identifier("appointment_id", required=False),
            patient_id=fields.identifier("patient_id", required=False),
            status=fields.choice("status") if request.status else "",
            created_from=0 if first is None else int(first.timestamp() * 1000),
            created_before=LATEST if before is None else int(before.timestamp() * 1000),
        )


def _check_amount(fields: Fields, amount: int, currency: str) -> None:
    """Refuse an amount that Stripe's minor units cannot express; never round."""
    if amount > MAX_AMOUNT:
        fields.wrong("amount.amount_minor", Rule.OUT_OF_RANGE, min=1, max=MAX_AMOUNT)
    if amount % (step := step_of(currency)):
        fields.wrong("amount.amount_minor", Rule.NOT_A_MULTIPLE, step=step, currency=currency)


def _expiry(fields: Fields, methods: tuple[str, ...]) -> dict[str, int]:
    """Return the expiry of each method that has one, in the method's own unit."""
    named = [method for method in methods if method in EXPIRIES]
    if not fields.has("expiry"):
        return {method: EXPIRIES[method].default for method in named}
    length = fields.duration("expiry")
    if not named:
        fields.wrong("expiry", Rule.NOTHING_EXPIRES)
    expiry = {}
    for method in named if length else ():
        unit, minimum, maximum, _, rule = EXPIRIES[method]
        expiry[method], rest = divmod(length or timedelta(0), unit)
        if rest or not minimum <= expiry[method] <= maximum:
            fields.wrong("expiry", rule)
    return expiry


def _methods(fields: Fields, request: pb.CreatePaymentRequest) -> tuple[str, ...]:
    names = {fields.choice("methods", value=number) for number in request.methods} - {""}
    if "AUTOMATIC" in names and len(names) > 1:
        fields.wrong("methods", Rule.AUTOMATIC_STANDS_ALONE)
    return tuple(sorted(names - {"AUTOMATIC"}))


def _payer(fields: Fields, *, required: bool) -> Payer:
    payer = fields.child("payer", required=required)
    if payer is None:
        return Payer(locale=DEFAULT_LOCALE)
    locale = payer.text("locale", max_length=35) or DEFAULT_LOCALE
    if not LOCALE.fullmatch(locale):
        payer.wrong("locale", Rule.NOT_A_LANGUAGE)
    name = payer.text("name", min_length=int(required), max_length=200)
    if required and not to_ascii(name).isascii():
        payer.wrong("name", Rule.NOT_LATIN)
    return Payer(
        name=name,
        email=payer.email("email", required=required),
        phone=_phone(payer),
        tax_id=_tax_id(payer, required=required),
        locale=locale,
        address=_address(payer, required=required),
    )


def _address(payer: Fields, *, required: bool) -> Address | None:
    """Parse an address. A boleto's (`required`) must be complete, in Brazil and writable in ASCII."""
    fields = payer.child("address", required=required)
    if fields is None:
        return None
    min_length = int(required)
    address = Address(
        line1=fields.text("line1", min_length=min_length, max_length=200),
        line2=fields.text("line2", max_length=200),
        city=fields.text("city", min_length=min_length, max_length=100),
        state=fields.text("state", min_length=min_length, max_length=50),
        postal_code=fields.text("postal_code", min_length=min_length, max_length=20),
        country=fields.text("country", max_length=2) or "BR",
    )
    if not re.fullmatch("[A-Z]{2}", address.country):
        fields.wrong("country", Rule.NOT_A_COUNTRY)
    elif required and address.country != "BR":
        fields.wrong("country", Rule.NOT_BRAZIL)
    for name, value in vars(address).items() if required else ():
        if not to_ascii(value).isascii():
            fields.wrong(name, Rule.NOT_LATIN)
    return _in_brazil(fields, address) if address.country == "BR" else address


def _in_brazil(fields: Fields, address: Address) -> Address:
    state, digits = address.state.upper(), re.sub(r"[\s.-]", "", address.postal_code)
    if state and state not in STATES.split():
        fields.wrong("state", Rule.NOT_A_STATE)
    if digits and not re.fullmatch("[0-9]{8}", digits):
        fields.wrong("postal_code", Rule.NOT_A_CEP)
    return replace(address, state=state, postal_code=f"{digits[:5]}-{digits[5:]}" if digits else "")


def _phone(payer: Fields) -> str:
    text = payer.text("phone", max_length=40)
    return payer.read("phone", phone, text) if text else ""


def _tax_id(payer: Fields, *, required: bool) -> str:
    text = payer.text("tax_id", min_length=int(required), max_length=30)
    return payer.read("tax_id", tax_id, text) if text else ""


def _metadata(fields: Fields, values: Mapping[str, str]) -> dict[str, str]:
    if len(values) > 20:
        fields.wrong("metadata", Rule.TOO_MANY_ENTRIES, limit=20, length=len(values))
    entries = {key: normalized(value) for key, value in values.items()}
    for key, value in entries.items():
        if not 1 <= len(key) <= 40 or not printable(key) or set(key) & set("[]"):
            fields.wrong("metadata", Rule.NOT_A_METADATA_KEY)
        elif key.startswith("topsmile_"):
            fields.wrong(f"metadata.{key}", Rule.RESERVED_METADATA_KEY)
        if len(value) > 500 or not printable(value, multiline=True):
            fields.wrong(f"metadata.{key[:40]}", Rule.NOT_A_METADATA_VALUE)
    return entries

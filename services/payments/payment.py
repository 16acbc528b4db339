"""What a caller asks for: CreatePaymentRequest read into values, with every wrong field named."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from services.brazil.money import THREE_DECIMALS
from services.brazil.phones import phone
from services.brazil.tax_ids import tax_id
from services.chassis.fields import Fields, printable
from services.chassis.violations import Rule
from topsmile.common.v1 import common_pb2 as common
from topsmile.payments.v1 import payments_pb2 as pb

LARGEST = 99_999_999
#: Sent in hundredths that have to be zero: https://docs.stripe.com/currencies#special-cases
WHOLE_ONLY = frozenset(["ISK", "UGX"])
DEFAULT_LOCALE = "pt-BR"
BRL_ONLY = ("PIX", "BOLETO")
LOCALE = re.compile(r"[A-Za-z]{2,3}(-[A-Za-z0-9]{2,8})*")


@dataclass(frozen=True)
class Payer:
    name: str = ""
    email: str = ""
    phone: str = ""
    tax_id: str = ""
    locale: str = ""


@dataclass(frozen=True)
class Order:
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
    metadata: Mapping[str, str] = field(default_factory=dict)

    @property
    def confirmed_here(self) -> bool:
        """Pix or boleto alone needs nothing more of the payer: we ask for the code or voucher at once."""
        return len(self.methods) == 1 and self.methods[0] in BRL_ONLY

    @classmethod
    def from_request(cls, request: pb.CreatePaymentRequest) -> Order:
        fields = Fields(request)
        key = fields.key()
        amount, currency = fields.money("amount")
        methods = _methods(fields, request)
        manual = request.HasField("capture") and fields.choice("capture") == "MANUAL"
        order = cls(
            idempotency_key=key,
            amount_minor=amount,
            currency=currency,
            appointment_id=fields.text("appointment_id", least=1, most=100),
            patient_id=fields.text("patient_id", least=1, most=100),
            description=fields.text("description", most=500),
            payer=_payer(fields, required="BOLETO" in methods),
            methods=methods,
            manual_capture=manual,
            allow_another=request.allow_another,
            metadata=_metadata(fields, request.metadata),
        )
        _check_amount(fields, amount, currency)
        if set(methods) & set(BRL_ONLY):
            if currency != "BRL":
                fields.wrong("amount.currency", Rule.NOT_BRL)
            if manual:
                fields.wrong("capture", Rule.NO_MANUAL_CAPTURE)
        fields.check()
        return order

    @property
    def asked(self) -> dict[str, object]:
        """What a repeated key has to ask for again. A default is as good as nothing."""
        payer = {f"payer.{name}": value for name, value in vars(self.payer).items()}
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
            **payer,
            "payer.locale": "" if self.payer.locale == DEFAULT_LOCALE else self.payer.locale,
        }

    def record(self, payment_id: str, *, livemode: bool) -> pb.Payment:
        """The payment before anything is known of it at the provider."""
        return pb.Payment(
            payment_id=payment_id,
            status=pb.PAYMENT_STATUS_UNKNOWN,
            amount=common.Money(amount_minor=self.amount_minor, currency=self.currency),
            amount_captured=common.Money(currency=self.currency),
            amount_refunded=common.Money(currency=self.currency),
            appointment_id=self.appointment_id,
            patient_id=self.patient_id,
            description=self.description,
            payer=pb.Payer(**vars(self.payer)),
            capture=pb.CAPTURE_METHOD_MANUAL if self.manual_capture else pb.CAPTURE_METHOD_AUTOMATIC,
            method=common.PaymentMethod.Value(
                f"PAYMENT_METHOD_{self.methods[0] if self.confirmed_here else 'UNSPECIFIED'}"
            ),
            last_attempt=pb.ATTEMPT_OUTCOME_UNKNOWN,
            livemode=livemode,
            metadata=self.metadata,
        )


def _check_amount(fields: Fields, amount: int, currency: str) -> None:
    """Refuse what Stripe's minor units cannot say; nothing is rounded."""
    if amount > LARGEST:
        fields.wrong("amount.amount_minor", Rule.OUT_OF_RANGE, least=1, most=LARGEST)
    if currency in WHOLE_ONLY and amount % 100:
        fields.wrong("amount.amount_minor", Rule.NOT_A_MULTIPLE, step=100, currency=currency)
    if currency in THREE_DECIMALS and amount % 10:
        fields.wrong("amount.amount_minor", Rule.NOT_A_MULTIPLE, step=10, currency=currency)


def _methods(fields: Fields, request: pb.CreatePaymentRequest) -> tuple[str, ...]:
    names = {fields.choice("methods", value=number) for number in request.methods} - {""}
    if "AUTOMATIC" in names and len(names) > 1:
        fields.wrong("methods", Rule.AUTOMATIC_STANDS_ALONE)
    return tuple(sorted(names - {"AUTOMATIC"}))


def _payer(fields: Fields, *, required: bool) -> Payer:
    payer = fields.child("payer", required=required)
    if payer is None:
        return Payer(locale=DEFAULT_LOCALE)
    locale = payer.text("locale", most=35) or DEFAULT_LOCALE
    if not LOCALE.fullmatch(locale):
        payer.wrong("locale", Rule.NOT_A_LANGUAGE)
    return Payer(
        name=payer.text("name", least=int(required), most=200),
        email=payer.email("email", required=required),
        phone=_phone(payer),
        tax_id=_tax_id(payer, required=required),
        locale=locale,
    )


def _phone(payer: Fields) -> str:
    text = payer.text("phone", most=40)
    return payer.read("phone", phone, text) if text else ""


def _tax_id(payer: Fields, *, required: bool) -> str:
    text = payer.text("tax_id", least=int(required), most=30)
    return payer.read("tax_id", tax_id, text) if text else ""


def _metadata(fields: Fields, given: Mapping[str, str]) -> dict[str, str]:
    if len(given) > 20:
        fields.wrong("metadata", Rule.TOO_MANY_ENTRIES, limit=20, length=len(given))
    for key, value in given.items():
        if not 1 <= len(key) <= 40 or not printable(key) or set(key) & set("[]"):
            fields.wrong("metadata", Rule.NOT_A_METADATA_KEY)
        elif key.startswith("topsmile_"):
            fields.wrong(f"metadata.{key}", Rule.RESERVED_METADATA_KEY)
        if len(value) > 500 or not printable(value, multiline=True):
            fields.wrong(f"metadata.{key[:40]}", Rule.NOT_A_METADATA_VALUE)
    return dict(given)

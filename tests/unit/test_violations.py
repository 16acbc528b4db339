"""The rules for fields, with messages in two languages."""

from __future__ import annotations

import re
from string import Formatter

import pytest
from google.rpc import error_details_pb2

from gateway.bodies import fill
from services.chassis.errors import InvalidRequest, OutcomeUnknown, Throttled, Violation
from services.chassis.rpc.error_details import to_status
from services.chassis.rpc.validation import Fields
from services.chassis.violations import Rule
from topsmile.common.v1 import common_pb2 as common
from topsmile.payments.v1 import payments_pb2
from topsmile.sms.v1 import sms_pb2


def violations(error: InvalidRequest) -> list[error_details_pb2.BadRequest.FieldViolation]:
    bad = error_details_pb2.BadRequest()
    assert any(detail.Unpack(bad) for detail in to_status(error).details)
    return list(bad.field_violations)


def places(text: str) -> set[str]:
    return {name for _, name, _, _ in Formatter().parse(text) if name}


@pytest.mark.parametrize("rule", Rule, ids=lambda rule: rule.name)
def test_rule_has_a_reason_and_sentences_in_both_languages(rule: Rule) -> None:
    assert re.fullmatch("[A-Z][A-Z0-9_]+[A-Z0-9]", rule.name)
    assert len(rule.name) <= 63
    assert places(rule.portuguese) <= places(rule.english)
    assert rule.portuguese[0].isupper()
    assert rule.portuguese[-1] in ".}"


def test_rule_is_documented_in_the_contract() -> None:
    """Add a missing rule at the end of ViolationReason in common.proto."""
    documented = {name.removeprefix("VIOLATION_REASON_") for name in common.ViolationReason.keys()}  # noqa: SIM118 - no dict

    assert {rule.name for rule in Rule} == documented - {"UNSPECIFIED"}


@pytest.mark.parametrize("rule", Rule, ids=lambda rule: rule.name)
def test_violation_crosses_the_wire_with_reason_and_portuguese(rule: Rule) -> None:
    violation = rule.at("appointment.notes", **dict.fromkeys(places(rule.english), "7"))

    (sent,) = violations(InvalidRequest([violation]))

    assert (sent.field, sent.description, sent.reason) == ("appointment.notes", violation.description, rule.name)
    assert (sent.localized_message.locale, sent.localized_message.message) == ("pt-BR", violation.localized)


@pytest.mark.parametrize("count", [1, 12, 40, 500])
def test_violations_that_do_not_fit_are_counted_and_none_is_cut(count: int) -> None:
    rules = [Rule.TOO_LONG.at(f"appointments[{n}].notes", limit=1000, length=4711) for n in range(count)]

    sent = violations(InvalidRequest(rules))

    whole = [each for each in sent if each.reason == "TOO_LONG"]
    assert {each.description for each in whole} == {"must have at most 1000 characters, not 4711"}
    assert {each.localized_message.message for each in whole} == {"Escreva no máximo 1000 caracteres."}
    if len(whole) < count:
        assert sent[-1].description == f"and {count - len(whole)} more fields are wrong"


@pytest.mark.parametrize("given", ["OTHER", "UNSPECIFIED", "PAYMENT_METHOD_OTHER", "BITCOIN", 7, ""])
def test_enum_over_http_names_allowed_values_only(given: object) -> None:
    wrong: list[Violation] = []

    fill(payments_pb2.CreatePaymentRequest(), {"methods": [given]}, wrong)

    assert [(each.field, each.reason) for each in wrong] == [("methods", "NOT_A_CHOICE")]
    assert wrong[0].description == "must be one of AUTOMATIC, CARD, PIX, BOLETO"


@pytest.mark.parametrize("number", [0, 5, 99, -1])
def test_enum_over_grpc_names_allowed_values_only(number: int) -> None:
    fields = Fields(payments_pb2.CreatePaymentRequest())

    fields.choice("methods", value=number)

    with pytest.raises(InvalidRequest, match=r"^methods: must be one of AUTOMATIC, CARD, PIX, BOLETO$"):
        fields.check()


@pytest.mark.parametrize("seconds", [-62_135_596_800, 253_402_300_799, 946_684_799, 7_258_118_400, 10**17, -(10**17)])
def test_time_outside_the_years_2000_to_2199_is_named(seconds: int) -> None:
    request = sms_pb2.SendSmsRequest()
    request.send_time.seconds = seconds
    fields = Fields(request)

    assert fields.time("send_time") is None
    with pytest.raises(InvalidRequest, match=r"^send_time: must be a time between the years 2000 and 2199$"):
        fields.check()


@pytest.mark.parametrize("seconds", [0, -1, 3660 * 86_400 + 1, 315_576_000_000, 10**18, -(10**18)])
def test_duration_beyond_ten_years_is_named(seconds: int) -> None:
    request = sms_pb2.SendAppointmentReminderRequest()
    request.before.seconds = seconds
    fields = Fields(request)

    assert fields.duration("before") is None
    with pytest.raises(InvalidRequest, match=r"^before: must be longer than zero and at most 3660 days$"):
        fields.check()


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (1.0, "em instantes"),
        (45.0, "em um minuto"),
        (176.0, "em 3 minutos"),
        (2400.0, "em uma hora"),
        (7200.5, "em 3 horas"),
        (60_000.0, "em um dia"),
    ],
)
def test_localized_message_matches_the_wait(seconds: float, words: str) -> None:
    message = error_details_pb2.LocalizedMessage()

    assert any(detail.Unpack(message) for detail in to_status(Throttled("later", retry_after=seconds)).details)
    assert message.message == f"Há muitos pedidos agora. Tente de novo {words}."


def test_outcome_unknown_has_a_retry_after() -> None:
    retry = error_details_pb2.RetryInfo()

    assert any(detail.Unpack(retry) for detail in to_status(OutcomeUnknown("stripe", None, "no answer")).details)
    assert retry.retry_delay.seconds == 5

"""What the texts say, in pt-BR. Each is folded in the end: write them with their accents."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING
from unicodedata import category
from zoneinfo import ZoneInfo

from services.brazil.dates import clock, spoken_day
from services.brazil.folding import fold
from services.brazil.money import reais
from services.sms.segments import GSM, size

if TYPE_CHECKING:
    from services.messaging.requests import Appointment, Payment

METHODS = {"CARD": "cartão", "PIX": "Pix", "BOLETO": "boleto"}
#: Unicode's categories of what decorates a name: emoji, their skin tones, and frames.
PICTURES = frozenset({"So", "Sk", "Me"})
PAYMENTS_ZONE = ZoneInfo("America/Sao_Paulo")


def reminder(appointment: Appointment) -> str:
    return _one_segment("Lembrete: " + _agreed(appointment), _details(appointment))


def confirmation(appointment: Appointment) -> str:
    return _one_segment("Confirmação: " + _agreed(appointment), _details(appointment))


def verification(code: str) -> str:
    return fold(f"Seu código de verificação: {code}", GSM).text


def receipt(payment: Payment) -> str:
    amount, day = reais(payment.amount_minor, payment.currency), payment.paid_at.astimezone(PAYMENTS_ZONE)
    by = f" por {METHODS[payment.method]}" if payment.method else ""
    details = [f". {payment.description}"] if payment.description else []
    details += [f". Paciente: {payment.patient_name}"] if payment.patient_name else []
    return _one_segment(f"Pagamento recebido: {amount} em {day:%d/%m/%Y}{by}", iter(details))


def _agreed(appointment: Appointment) -> str:
    day, time = spoken_day(appointment.start_at, appointment.zone), clock(appointment.start_at, appointment.zone)
    return f"Consulta agendada para {day} às {time}"


def _details(appointment: Appointment) -> Iterator[str]:
    if appointment.professional:
        yield f" com {appointment.professional}"
    if appointment.clinic:
        yield f", {appointment.clinic}"
    if appointment.clinic_phone:
        yield f". Dúvidas: {appointment.clinic_phone}"
    if appointment.address:
        yield f". Endereço: {appointment.address}"
    yield f". Paciente: {appointment.patient_name}"


def _one_segment(opening: str, details: Iterator[str]) -> str:
    """
    Add what still fits; the opening is sent however long it is.

    A detail loses its pictures. One with letters of another script is left out whole.
    """
    text = fold(opening, GSM).text
    for detail in details:
        longer = fold(text + detail, GSM)
        if size(longer.text).segments == 1 and all(category(char) in PICTURES for char in longer.lost):
            text = longer.text
    return text

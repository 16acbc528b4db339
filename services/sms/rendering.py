"""The words of the texts, in pt-BR. Write them with their accents; each text is folded at the end."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from unicodedata import category
from zoneinfo import ZoneInfo

from services.brazil.dates import clock, spoken_day
from services.brazil.folding import fold
from services.brazil.money import reais
from services.chassis.queue.jobs import Job
from services.messaging.record import MessageRecord
from services.messaging.requests import Appointment, Payment
from services.sms.pepper import Pepper
from services.sms.segments import GSM, size
from topsmile.sms.v1 import sms_pb2 as pb

CODE = "verification_code"

METHODS = {"CARD": "cartão", "PIX": "Pix", "BOLETO": "boleto"}
#: Unicode's categories of emoji, their skin tones, and frames.
PICTURES = frozenset({"So", "Sk", "Me"})
PAYMENTS_ZONE = ZoneInfo("America/Sao_Paulo")
#: Seconds that Twilio allows as a text's validity. It sends nothing with less than 5.
MIN_VALIDITY, MAX_VALIDITY = 10, 36_000


@dataclass(frozen=True)
class Text:
    """One text, ready to send. `attempt` only rises from one hand-over of the same sms to the next."""

    sms_id: str
    attempt: int
    recipient: str
    body: str
    #: Seconds after which the provider must not send it any more.
    valid_for: int


def render(pepper: Pepper, record: MessageRecord, job: Job) -> Text:
    """Return the text that a job holds."""
    body = pb.SendSmsRequest.FromString(job.payload).body
    valid_for = min(max((record.expires_at - record.now) // 1000, MIN_VALIDITY), MAX_VALIDITY)
    return Text(
        job.id, job.claims, record.recipient, pepper.unseal(body) if record.template == CODE else body, valid_for
    )


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
    Add the details that still fit in one segment. The opening is never cut.

    A detail loses its pictures. A detail with letters of another script is left out.
    """
    text = fold(opening, GSM).text
    for detail in details:
        longer = fold(text + detail, GSM)
        if size(longer.text).segments == 1 and all(category(char) in PICTURES for char in longer.lost):
            text = longer.text
    return text

"""The words of the mails, in pt-BR, as text and as HTML."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from zoneinfo import ZoneInfo

import css_inline
from babel.dates import get_timezone_location
from jinja2 import Environment, FileSystemLoader, StrictUndefined, select_autoescape

from services.brazil.dates import clock, spoken_day
from services.brazil.money import reais
from services.chassis.queue.jobs import Job
from services.chassis.rpc.validation import CLINIC_ZONE
from services.email.invitation import invitation
from services.email.requests import SUBJECTS, Mailbox, stored
from services.messaging.record import MessageRecord
from services.messaging.requests import CONFIRMATION, Appointment, Payment

TEMPLATES = Path(__file__).with_name("templates")
METHODS = {"CARD": "Cartão", "PIX": "Pix", "BOLETO": "Boleto"}


@dataclass(frozen=True)
class Mail:
    """One mail, ready to send. `attempt` only rises from one hand-over of the same email to the next."""

    email_id: str
    attempt: int
    recipient: Mailbox
    subject: str
    text: str
    html: str
    #: An iCalendar file; None: the mail carries none.
    invitation: bytes | None = None


class Renderer:
    """`sender` is also who organises the calendar entry."""

    def __init__(self, sender: Mailbox) -> None:
        self._sender = sender
        self._templates = Environment(
            loader=FileSystemLoader(TEMPLATES),
            autoescape=select_autoescape(["html"]),
            undefined=StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
            keep_trailing_newline=True,
        )
        # Mail programs ignore style sheets; the few that do not may use the rules for dark mode that stay.
        self._inliner = css_inline.CSSInliner(keep_at_rules=True, load_remote_stylesheets=False)

    def render(self, record: MessageRecord, job: Job) -> Mail:
        """Return the mail that a job holds; a confirmation carries its calendar entry."""
        message = stored(record.template, job.payload)
        recipient = Mailbox(record.recipient, record.recipient_name)
        about, subject = message.about, SUBJECTS[message.template]
        facts = appointment_facts(about) if isinstance(about, Appointment) else payment_facts(about)
        named = {
            "subject": subject,
            "clinic": about.clinic if isinstance(about, Appointment) else "",
            "greeted": message.recipient.name or about.patient_name,
            "facts": [(label, value) for label, value in facts if value],
            "notes": about.notes if isinstance(about, Appointment) else "",
            "phone": about.clinic_phone if isinstance(about, Appointment) else "",
        }
        entry = None
        if message.template == CONFIRMATION and isinstance(about, Appointment):
            entry = invitation(about, self._sender, message.recipient, record)
        text = self._templates.get_template(f"{message.template}.txt").render(named)
        html = self._inliner.inline(self._templates.get_template(f"{message.template}.html").render(named))
        return Mail(job.id, job.claims, recipient, subject, text, html, entry)


def appointment_facts(appointment: Appointment) -> list[tuple[str, str]]:
    zone = appointment.zone
    return [
        ("Paciente", appointment.patient_name),
        ("Data", day(appointment.start_at, zone)),
        ("Horário", hours(appointment)),
        ("Profissional", appointment.professional),
        ("Clínica", appointment.clinic),
        ("Endereço", appointment.address),
        ("Telefone", appointment.clinic_phone),
        ("Observações", appointment.notes),
    ]


def payment_facts(payment: Payment) -> list[tuple[str, str]]:
    zone = ZoneInfo(CLINIC_ZONE)
    paid_at = f"{day(payment.paid_at, zone)}, às {clock(payment.paid_at, zone)} ({zone_name(zone)})"
    return [
        ("Valor pago", reais(payment.amount_minor, payment.currency)),
        ("Referente a", payment.description),
        ("Paciente", payment.patient_name),
        ("Pago em", paid_at),
        ("Forma de pagamento", METHODS.get(payment.method, "")),
        ("Comprovante", payment.payment_id),
    ]


def day(moment: datetime, zone: ZoneInfo) -> str:
    return f"{spoken_day(moment, zone)} de {moment.astimezone(zone).year}"


def hours(appointment: Appointment) -> str:
    zone, start_at, end_at = appointment.zone, appointment.start_at, appointment.end_at
    text = clock(start_at, zone)
    if end_at is not None:
        same_day = start_at.astimezone(zone).date() == end_at.astimezone(zone).date()
        text = f"{text} às {clock(end_at, zone)}" + ("" if same_day else f" de {day(end_at, zone)}")
    return f"{text} ({zone_name(zone)})"


def zone_name(zone: ZoneInfo) -> str:
    """Name it by its city, as Brazil does; the official one by the capital."""
    if zone.key == CLINIC_ZONE:
        return "horário de Brasília"
    return f"horário de {get_timezone_location(zone, locale='pt_BR', return_city=True)}"

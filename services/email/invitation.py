"""The calendar entry of an appointment, as iCalendar (RFC 5545) sent by mail (RFC 6047)."""

import json
from datetime import UTC, date, datetime, timedelta
from functools import lru_cache
from uuid import NAMESPACE_URL, uuid5
from zoneinfo import ZoneInfo

from icalendar import Calendar, Event, Timezone, vCalAddress, vText

from services.email.requests import Mailbox
from services.messaging.record import MessageRecord
from services.messaging.requests import Appointment

#: How long an appointment takes in the calendar when nobody has said.
USUAL_LENGTH = timedelta(minutes=30)


def invitation(appointment: Appointment, organizer: Mailbox, attendee: Mailbox, record: MessageRecord) -> bytes:
    """Return the entry. A later revision for the same caller's appointment moves the entry of the earlier."""
    owner = json.dumps([record.caller, appointment.appointment_id])
    event = Event()
    event.add("uid", f"{uuid5(NAMESPACE_URL, f'topsmile:appointment:{owner}')}@topsmile")
    event.add("sequence", record.revision)
    event.add("dtstamp", datetime.fromtimestamp(record.created_at / 1000, UTC))
    event.add("dtstart", appointment.start_at.astimezone(appointment.zone))
    event.add("dtend", (appointment.end_at or appointment.start_at + USUAL_LENGTH).astimezone(appointment.zone))
    event.add("summary", f"Consulta: {appointment.clinic or appointment.professional or appointment.patient_name}")
    event.add("location", ", ".join(part for part in (appointment.clinic, appointment.address) if part))
    event.add("description", "\n".join(_lines(appointment)))
    event.add("status", "CONFIRMED")
    event.add("organizer", _address(Mailbox(organizer.address, appointment.clinic or organizer.name)), encode=False)
    guest = _address(Mailbox(attendee.address, attendee.name or appointment.patient_name))
    guest.params["partstat"], guest.params["rsvp"] = vText("ACCEPTED"), vText("FALSE")
    event.add("attendee", guest, encode=False)

    calendar = Calendar()
    calendar.add("prodid", "-//TopSmile//Consultas//PT-BR")
    calendar.add("version", "2.0")
    calendar.add("method", "REQUEST")
    calendar.add_component(_rules(appointment.zone, appointment.start_at.astimezone(appointment.zone).year))
    calendar.add_component(event)
    return bytes(calendar.to_ical())


@lru_cache(maxsize=64)
def _rules(zone: ZoneInfo, year: int) -> Timezone:
    """
    Return the zone's offsets around a year; finding them takes 15 ms.

    They begin a year early: a time before the first of them, such as that evening's in another zone, has no offset.
    """
    return Timezone.from_tzinfo(zone, zone.key, first_date=date(year - 1, 1, 1), last_date=date(year + 2, 1, 1))


def _lines(appointment: Appointment) -> list[str]:
    lines = [f"Paciente: {appointment.patient_name}"]
    if appointment.professional:
        lines.append(f"Profissional: {appointment.professional}")
    if appointment.clinic_phone:
        lines.append(f"Telefone: {appointment.clinic_phone}")
    return [*lines, appointment.notes] if appointment.notes else lines


def _address(mailbox: Mailbox) -> vCalAddress:
    address = vCalAddress(f"mailto:{mailbox.address}")
    if mailbox.name:
        # RFC 5545 knows no way to write a double quote in a parameter.
        address.params["cn"] = vText(mailbox.name.replace('"', "'"))
    return address

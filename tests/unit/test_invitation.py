"""A calendar entry, read back with a calendar's own parser."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any
from zoneinfo import ZoneInfo

import icalendar
import pytest

from services.email.invitation import invitation
from services.email.requests import Mailbox
from services.messaging.record import MessageRecord
from services.messaging.requests import Appointment


def appointment(start_at: datetime, zone: str = "America/Sao_Paulo", appointment_id: str = "apt-1") -> Appointment:
    return Appointment(
        appointment_id, "João", "Dra. Beatriz", "Clínica Sorriso", "Rua das Flores, 123", start_at,
        ZoneInfo(zone), "(11) 3456-7890", notes="Traga os exames.",
    )  # fmt: skip


def record(caller: str = "clinic", revision: int = 7) -> MessageRecord:
    return MessageRecord(
        "eml_1", "appointment_confirmation", "ana@example.com", "Ana", "apt-1", "", 0, "QUEUED", 20, 0, 0,
        1_790_000_000_000, 0, 0, caller=caller, revision=revision,
    )  # fmt: skip


def written(about: Appointment, of: MessageRecord | None = None) -> Any:
    ics = invitation(about, Mailbox("clinica@example.com"), Mailbox("ana@example.com", "Ana"), of or record())
    return icalendar.Calendar.from_ical(ics)


@pytest.mark.parametrize(
    ("start_at", "zone"),
    [
        (datetime(2027, 1, 1, 1, tzinfo=UTC), "America/Sao_Paulo"),  # still the old year there
        (datetime(2027, 1, 1, 3, tzinfo=UTC), "America/Sao_Paulo"),  # midnight
        (datetime(2026, 12, 31, 12, tzinfo=UTC), "Pacific/Auckland"),  # the new year there
        (datetime(2027, 1, 1, 8, tzinfo=UTC), "America/New_York"),
        (datetime(2027, 7, 1, 12, tzinfo=UTC), "Europe/Lisbon"),
        (datetime(2030, 3, 14, 12, tzinfo=UTC), "America/Manaus"),
    ],
)
def test_an_entry_s_time_zone_begins_long_before_its_appointment(start_at: datetime, zone: str) -> None:
    entry = written(appointment(start_at, zone))
    (rules,), (event,) = entry.walk("VTIMEZONE"), entry.walk("VEVENT")

    local = start_at.astimezone(ZoneInfo(zone))
    begins = min(part["dtstart"].dt for part in rules.subcomponents)
    assert (event["dtstart"].dt, event["dtstart"].params["TZID"], str(rules["tzid"])) == (local, zone, zone)
    assert (local.replace(tzinfo=None) - begins).days >= 365
    assert rules.to_tz(lookup_tzid=False).utcoffset(local.replace(tzinfo=None)) == local.utcoffset()


@pytest.mark.parametrize(
    ("caller", "appointment_id"),
    [("other", "apt-1"), ("clinic", "apt-2"), ('clinic", "apt', "1"), ("clin", "ic apt-1"), ("", "clinic apt-1")],
)
def test_an_entry_s_identifier_is_of_one_caller_and_appointment_and_tells_neither(
    caller: str, appointment_id: str
) -> None:
    first = datetime(2027, 3, 14, 12, tzinfo=UTC)
    (ours,) = written(appointment(first)).walk("VEVENT")
    (moved,) = written(appointment(first.replace(hour=15)), record(revision=8)).walk("VEVENT")
    (another,) = written(appointment(first, appointment_id=appointment_id), record(caller)).walk("VEVENT")

    assert ours["uid"] == moved["uid"] != another["uid"]
    assert (ours["sequence"], moved["sequence"]) == (7, 8)
    assert "clinic" not in str(ours["uid"])
    assert "apt-1" not in str(ours["uid"])

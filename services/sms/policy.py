"""The rules of texts: reminders stay out of the night, and a code is better sent twice than late."""

from __future__ import annotations

from functools import partial

from services.messaging.record import MessageRecord
from services.messaging.requests import REMINDER, NewMessage, milliseconds, time_of
from services.messaging.sender import Policy
from services.messaging.store import Due
from services.sms.pepper import Pepper
from services.sms.quiet_hours import QuietHours
from services.sms.rendering import CODE, Text, render


def policy(pepper: Pepper, quiet_hours: QuietHours) -> Policy[Text]:
    return Policy(
        partial(render, pepper),
        hold=partial(quiet_for, quiet_hours),
        prefers_twice=lambda record: record.template == CODE,
    )


def due_at(quiet_hours: QuietHours, message: NewMessage, requested: int, now: int) -> Due:
    """Return when a message may go: a reminder keeps out of the recipient's night."""
    start_at = message.schedule.expires_at
    if message.template != REMINDER or start_at is None:
        return Due(requested)
    allowed = quiet_hours.allowed_at(
        time_of(requested), now=time_of(now), recipient=message.recipient, start_at=start_at
    )
    return Due(milliseconds(allowed), "" if allowed == time_of(requested) else "QUIET_HOURS")


def quiet_for(quiet_hours: QuietHours, record: MessageRecord) -> tuple[float, str]:
    """Return the seconds of night that are left for a reminder, which an outage may have delayed."""
    if record.template != REMINDER:
        return 0.0, ""
    now, start_at = time_of(record.now), time_of(record.expires_at)
    allowed = quiet_hours.allowed_at(now, now=now, recipient=record.recipient, start_at=start_at)
    return (milliseconds(allowed) - record.now) / 1000, "QUIET_HOURS"

"""Nobody is reminded at night. Only reminders wait for the morning; a code or a receipt was asked for just now."""

from datetime import datetime, time, timedelta
from zoneinfo import ZoneInfo

import phonenumbers
from phonenumbers import timezone

from services.chassis.fields import CLINIC_ZONE

MORNING, EVENING = time(8), time(21)
#: Before an appointment that begins too early to wait for the morning.
NOTICE = timedelta(hours=1)


def allowed_at(moment: datetime, recipient: str, start_at: datetime) -> datetime:
    """
    Move a reminder out of the recipient's night: to 08:00, if the appointment begins later than that.

    Otherwise to an hour before the start, or not at all where less than that is left: woken beats missed.
    """
    local = moment.astimezone(zone_of(recipient))
    if MORNING <= local.time() < EVENING:
        return moment
    day = local.date() if local.time() < MORNING else local.date() + timedelta(days=1)
    morning = datetime.combine(day, MORNING, local.tzinfo)
    return morning if morning < start_at else max(moment, start_at - NOTICE)


def zone_of(recipient: str) -> ZoneInfo:
    """The area code tells: 92 is America/Manaus. Where it leaves several, most clinics' clock counts."""
    zones = timezone.time_zones_for_number(phonenumbers.parse(recipient))
    return ZoneInfo(zones[0] if len(zones) == 1 and zones[0] != timezone.UNKNOWN_TIMEZONE else CLINIC_ZONE)

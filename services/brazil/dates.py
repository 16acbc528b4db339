"""Days and times of day in pt-BR words."""

from datetime import datetime
from zoneinfo import ZoneInfo

from babel.dates import format_date


def spoken_day(moment: datetime, zone: ZoneInfo) -> str:
    """quinta-feira, 12 de março."""
    return format_date(moment.astimezone(zone).date(), "EEEE, d 'de' MMMM", locale="pt_BR")


def clock(moment: datetime, zone: ZoneInfo) -> str:
    """14h30, and 14h for the full hour."""
    local = moment.astimezone(zone)
    return f"{local.hour}h{local.minute:02d}" if local.minute else f"{local.hour}h"

"""Nobody is reminded at night. Only reminders wait for the morning; a code or a receipt was requested just now."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, time, timedelta
from typing import Self
from zoneinfo import ZoneInfo

from services.brazil.zones import zones_of
from services.chassis.rpc.validation import CLINIC_ZONE, ZONES

#: How long before an appointment its reminder arrives at least, where the night has moved it.
NOTICE = timedelta(hours=1)
#: How long before the night a reminder is due that may not wait until the morning: time for a queue that is behind.
SLACK = timedelta(minutes=30)

FORM = re.compile(r"(?P<begin>\d\d:\d\d)-(?P<end>\d\d:\d\d)(?: (?P<zone>\S+))?")


@dataclass(frozen=True)
class QuietHours:
    """
    The night on the recipient's clock, from `begin` to before `end`; none where both are equal.

    A number that may be in several zones is quiet while it is night in any of them. `zone` counts for numbers that say
    nothing, or that leave no hour.
    """

    begin: time = time(21)
    end: time = time(8)
    zone: ZoneInfo = field(default_factory=lambda: ZoneInfo(CLINIC_ZONE))

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read `21:00-08:00`, `21:00-08:00 America/Manaus` or `off`; ValueError where it is none of these."""
        if text == "off":
            return cls(time(0), time(0))
        form = FORM.fullmatch(text)
        if form is None or (form["zone"] and not ZONES.fullmatch(form["zone"])):
            raise ValueError("must be off or hours such as 21:00-08:00, with or without a time zone behind them")
        try:
            zone = ZoneInfo(form["zone"] or CLINIC_ZONE)
            return cls(time.fromisoformat(form["begin"]), time.fromisoformat(form["end"]), zone)
        except (ValueError, OSError, LookupError):
            raise ValueError("must hold hours from 00:00 to 23:59 and a time zone of the IANA database") from None

    def allowed_at(self, requested_at: datetime, *, now: datetime, recipient: str, start_at: datetime) -> datetime:
        """
        Return when a reminder that is due at `requested_at` (not before `now`) may be handed over.

        By day, at once. At night, in the morning, if that is NOTICE before the start or earlier. Otherwise the evening
        before, or now, while that evening lasts. When it is too late for that: NOTICE before the start, or now.
        """
        days = list(self._days(requested_at, recipient))
        if any(morning <= requested_at < night for morning, night in days):
            return requested_at
        morning = min(morning for morning, _ in days if morning > requested_at)
        if morning <= start_at - NOTICE:
            return morning
        evening_begin, night = max(day for day in days if day[1] <= requested_at)
        evening = max(min(night - SLACK, start_at - NOTICE), evening_begin, now)
        return evening if evening < night else max(now, start_at - NOTICE)

    def _days(self, around: datetime, recipient: str) -> Iterator[tuple[datetime, datetime]]:
        """Yield (morning, night) of the days before and after a time: the hours that are quiet nowhere, in UTC."""
        zones = [ZoneInfo(zone) for zone in zones_of(recipient)]
        days = list(self._common_days(around, zones)) if zones else []
        yield from days or self._common_days(around, (self.zone,))

    def _common_days(self, around: datetime, zones: Collection[ZoneInfo]) -> Iterator[tuple[datetime, datetime]]:
        past_midnight = timedelta(days=self.begin <= self.end)
        for offset in range(-2, 3):
            date = around.astimezone(UTC).date() + timedelta(days=offset)
            morning = max(datetime.combine(date, self.end, zone).astimezone(UTC) for zone in zones)
            night = min(datetime.combine(date + past_midnight, self.begin, zone).astimezone(UTC) for zone in zones)
            if morning < night:
                yield morning, night

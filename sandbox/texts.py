"""A text: what Twilio takes, and what becomes of it as time goes by."""

import math
import re
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from urllib.parse import urlsplit

from sandbox.recipients import FROM_REFUSED, LATE_SECONDS, Fate, TwilioRefusal, to_refusal
from sandbox.segments import segments
from sandbox.state import Json, now_ms

STEP_MS = 150


class Refused(Exception):  # noqa: N818 - a refusal, as Twilio words it
    def __init__(self, refusal: TwilioRefusal) -> None:
        super().__init__(refusal.message)
        self.refusal = refusal


def at(fate: Fate, place: int, start: int) -> int:
    """When a step is taken, and told of."""
    if fate.hold and not fate.silent:
        return start
    late = fate.late and place == len(fate.steps) - 1
    return start + STEP_MS * place + (int(LATE_SECONDS * 1000) if late else 0)


def checked(form: dict[str, str]) -> str:
    """The text to send."""
    sender = form.get("From") or form.get("MessagingServiceSid")
    body = form.get("Body", "")
    if not form.get("To"):
        raise Refused(TwilioRefusal(21604, "A 'To' phone number is required."))
    if not sender:
        raise Refused(TwilioRefusal(21603, "A 'From' phone number is required."))
    refusal = to_refusal(form["To"]) or FROM_REFUSED.get(form.get("From", ""))
    if refusal:
        raise Refused(refusal)
    if not re.fullmatch(r"\+[1-9]\d{3,14}|MG[0-9a-fA-F]{32}|\d{3,8}|[A-Za-z0-9 ]{1,11}", sender):
        raise Refused(TwilioRefusal(21212, f"Invalid 'From' Number: {sender}"))
    if not body and not form.get("MediaUrl") and not form.get("ContentSid"):
        raise Refused(TwilioRefusal(21602, "Message body is required."))
    if len(body) > 1600:
        raise Refused(TwilioRefusal(21617, "The concatenated message body exceeds the 1600 character limit"))
    callback = form.get("StatusCallback")
    if callback and not is_url(callback):
        raise Refused(TwilioRefusal(21609, f"Invalid 'StatusCallback' URL: {callback}"))
    if "ValidityPeriod" in form:
        validity = form["ValidityPeriod"]
        if not validity.isdecimal() or not 1 <= int(validity) <= 36_000:
            raise Refused(TwilioRefusal(35117, "ValidityPeriod is between 1 and 36000 seconds"))
    return body


def is_url(text: str) -> bool:
    try:
        parts = urlsplit(text)
    except ValueError:
        return False
    return parts.scheme in ("http", "https") and bool(parts.netloc)


def scheduled_at(form: dict[str, str]) -> int | None:
    """Only a Messaging Service schedules; from a number, SendAt sends at once, as the real one does."""
    if not form.get("MessagingServiceSid") or "SendAt" not in form:
        return None
    if form.get("ScheduleType") != "fixed":
        raise Refused(TwilioRefusal(35111, "ScheduleType is required with SendAt"))
    try:
        wanted = instant(form["SendAt"])
    except ValueError:
        raise Refused(TwilioRefusal(35112, "SendAt is not an ISO 8601 date and time")) from None
    ahead = wanted - datetime.now(UTC)
    if not timedelta(minutes=5) <= ahead <= timedelta(days=35):
        raise Refused(TwilioRefusal(35114, "SendAt must be between 5 minutes and 35 days from now"))
    return int(wanted.timestamp() * 1000)


def status_of(message: Json) -> Json:
    """The last step taken by now: time alone moves a text on, so a stopped sandbox misses nothing."""
    taken = [step for step in message["steps"] if step["at"] <= now_ms()]
    return taken[-1] if taken else {"at": message["created_at"], "status": "scheduled"}


def sent_at(message: Json) -> int | None:
    times = [step["at"] for step in message["steps"] if step["status"] == "sent" and step["at"] <= now_ms()]
    return times[0] if times else None


def shown(message: Json, *, first: bool = False) -> Json:
    now = {"at": message["created_at"], "status": message["steps"][0]["status"]} if first else status_of(message)
    if first and message["scheduled"]:
        now["status"] = "scheduled"
    sent = None if first else sent_at(message)
    uri = f"/2010-04-01/Accounts/{message['account_sid']}/Messages/{message['sid']}"
    return {
        "account_sid": message["account_sid"],
        "api_version": "2010-04-01",
        "body": message["body"],
        "date_created": rfc2822(message["created_at"]),
        "date_sent": sent and rfc2822(sent),
        "date_updated": rfc2822(now["at"]),
        "direction": "outbound-api",
        "error_code": now.get("ErrorCode"),
        "error_message": None,
        "from": message["from"],
        "messaging_service_sid": message["messaging_service_sid"],
        "num_media": "0",
        "num_segments": str(segments(message["body"])),
        "price": None,
        "price_unit": "USD",
        "sid": message["sid"],
        "status": now["status"],
        "subresource_uris": {"media": f"{uri}/Media.json"},
        "to": message["to"],
        "uri": f"{uri}.json",
    }


def instant(text: str) -> datetime:
    value = datetime.fromisoformat(text)
    return value if value.tzinfo else value.replace(tzinfo=UTC)


def moment(milliseconds: int) -> datetime:
    return datetime.fromtimestamp(math.floor(milliseconds / 1000), UTC)


def rfc2822(milliseconds: int) -> str:
    return format_datetime(moment(milliseconds))

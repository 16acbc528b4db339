"""SendGrid's mail/send, and the events that follow: https://www.twilio.com/docs/sendgrid/api-reference/mail-send"""

import gzip
import json
import sqlite3
import time
import zlib
from typing import Any

from starlette.routing import Route

from sandbox import webhooks
from sandbox.door import Door
from sandbox.exchange import Answer, Call, as_json
from sandbox.faults import Fault
from sandbox.form import value_at
from sandbox.mail_checks import MailError, checked
from sandbox.recipients import LATE_SECONDS, Fate, mail_fate
from sandbox.state import Json, now_ms, put, random_id

SIZE_AT_MOST = 30 * 1024 * 1024
SMTP_ID = "<{id}@geopod-ismtpd-sandbox>"

MESSAGES = {
    401: "The provided authorization grant is invalid, expired, or revoked",
    403: "access forbidden",
    404: "not found",
    405: "method not allowed",
    413: "content too large",
    429: "too many requests",
}


class SendGrid:
    name = "sendgrid"

    def started(self, _call: Call) -> Answer | None:
        return None

    def ended(self, _call: Call) -> None:
        pass

    def refusal(self, _db: sqlite3.Connection, _call: Call, fault: Fault) -> Answer:
        status = 429 if fault.kind == "throttle" else fault.status
        answer = refused(status, fault.message or MESSAGES.get(status, "internal server error"))
        if status == 429:
            reset = int(time.time() + fault.seconds_to_wait) + 1
            answer.headers = {"X-RateLimit-Limit": "600", "X-RateLimit-Remaining": "0", "X-RateLimit-Reset": str(reset)}
            if fault.retry_after is not None:
                answer.headers["Retry-After"] = fault.retry_after
        return answer

    def routes(self, door: Door) -> list[Route]:
        others = [door.route(self, method, "/v3/{rest:path}", self.unknown) for method in ("GET", "POST", "DELETE")]
        return [
            door.route(self, "POST", "/v3/mail/send", self.send),
            door.route(self, "GET", "/v3/mail/send", lambda _db, _call: refused(405, MESSAGES[405])),
            *others,
        ]

    def unknown(self, _db: sqlite3.Connection, _call: Call) -> Answer:
        return refused(404, MESSAGES[404])

    def send(self, db: sqlite3.Connection, call: Call) -> Answer:
        scheme, _, key = call.headers.get("authorization", "").partition(" ")
        if scheme.lower() != "bearer" or not key.startswith("SG.") or key == "SG.revoked":
            return refused(401, MESSAGES[401])
        if len(call.body) > SIZE_AT_MOST:
            return refused(413, MESSAGES[413])
        try:
            mail = checked(_parsed(call))
        except MailError as error:
            answer = refused(400, str(error), error.field)
            answer.request = error.mail
            return answer
        if value_at(mail, "mail_settings", "sandbox_mode", "enable"):
            return Answer(200, b"", request=mail)
        id = random_id("", 22)
        body: Json = {"id": id, "at": now_ms(), "fates": {}, "mail": mail}
        hold, silent = 0.0, False
        for index, personalization in enumerate(mail["personalizations"]):
            for recipient in (r for kind in ("to", "cc", "bcc") for r in personalization.get(kind) or []):
                fate = mail_fate(recipient["email"])
                body["fates"][recipient["email"]] = fate.name
                hold, silent = max(hold, fate.hold), silent or fate.silent
                report(db, mail, id=id, index=index, email=recipient["email"], fate=fate)
        put(db, "mail", body, id=id, label=mail["personalizations"][0]["to"][0]["email"])
        return Answer(202, b"", {"X-Message-Id": id}, object_id=id, request=mail, hold=hold, silent=silent)


def report(db: sqlite3.Connection, mail: Json, *, id: str, index: int, email: str, fate: Fate) -> None:
    """
    Queue the events of one recipient, each its own batch of one.

    A batch ends with CR LF, which is signed too. A late event's timestamp is of its own moment.
    """
    arguments = {**(mail.get("custom_args") or {}), **(mail["personalizations"][index].get("custom_args") or {})}
    categories = {"category": mail["categories"]} if mail.get("categories") else {}
    for place, step in enumerate(fate.steps):
        after = (LATE_SECONDS if fate.late and place == len(fate.steps) - 1 else 0.0) + 0.15 * (place + 1)
        if fate.hold and not fate.silent:
            after = 0.0
        event: dict[str, Any] = {
            "email": email,
            "timestamp": int(time.time() + after),
            "smtp-id": SMTP_ID.format(id=id),
            "event": step.event,
            **step.details,
            **categories,
            "sg_event_id": random_id("", 22),
            "sg_message_id": f"{id}.filterdrecv-sandbox-{index}.0",
            **{name: str(value) for name, value in arguments.items()},
        }
        body = json.dumps([event], ensure_ascii=False).encode() + b"\r\n"
        for _ in range(2 if fate.twice and place == len(fate.steps) - 1 else 1):
            webhooks.add(
                db, "sendgrid", subject=step.event, object_id=id, url="/webhooks/sendgrid", body=body, after=after
            )


def refused(status: int, message: str, field: str | None = None) -> Answer:
    return as_json(status, {"errors": [{"message": message, "field": field, "help": None}]})


def _parsed(call: Call) -> Any:
    body = call.body
    try:
        if call.headers.get("content-encoding") == "gzip":
            body = gzip.decompress(body)
        return json.loads(body)
    except (ValueError, OSError, EOFError, zlib.error) as problem:
        raise MailError("Bad Request", None, None) from problem

"""Twilio's Messages: https://www.twilio.com/docs/messaging/api/message-resource"""

import base64
import binascii
import json
import sqlite3
from collections.abc import Iterator
from datetime import timedelta
from typing import Any
from urllib.parse import urlencode
from uuid import uuid4

from starlette.routing import Route

from sandbox import webhooks
from sandbox.door import Door, Handler
from sandbox.exchange import Answer, Call, as_json
from sandbox.faults import Fault
from sandbox.recipients import Fate, TwilioRefusal, text_fate
from sandbox.signatures import Keys
from sandbox.state import Json, get, now_ms, put
from sandbox.texts import Refused, at, checked, instant, moment, scheduled_at, sent_at, shown, status_of

ROOT = "/2010-04-01/Accounts/{sid}"

CODES = {401: 20003, 404: 20404, 405: 20004, 429: 20429, 500: 20500, 503: 20503}
AUTHENTICATE = TwilioRefusal(20003, "Authenticate", 401)


class Twilio:
    name = "twilio"

    def __init__(self, keys: Keys) -> None:
        self._keys = keys

    def started(self, _call: Call) -> Answer | None:
        return None

    def ended(self, _call: Call) -> None:
        pass

    def refusal(self, _db: sqlite3.Connection, _call: Call, fault: Fault) -> Answer:
        status = 429 if fault.kind == "throttle" else fault.status
        code = int(fault.code) if fault.code else CODES.get(status, 20500 if status >= 500 else 20001)
        answer = refused(TwilioRefusal(code, fault.message or f"The sandbox was asked to answer {status}", status))
        if fault.retry_after is not None:
            answer.headers["Retry-After"] = fault.retry_after
        return answer

    def routes(self, door: Door) -> list[Route]:
        one = ROOT + "/Messages/{message}.json"
        table = [
            ("POST", ROOT + "/Messages.json", self.create),
            ("GET", ROOT + "/Messages.json", self.list),
            ("GET", one, self.fetch),
            ("POST", one, self.update),
            ("DELETE", one, self.delete),
            ("GET", "/2010-04-01/{rest:path}", self.unknown),
            ("POST", "/2010-04-01/{rest:path}", self.unknown),
        ]
        return [door.route(self, method, path, self._guarded(handler)) for method, path, handler in table]

    def _guarded(self, handler: Handler) -> Handler:
        def handle(db: sqlite3.Connection, call: Call) -> Answer:
            try:
                self._authenticate(call)
                return handler(db, call)
            except Refused as error:
                return refused(error.refusal)

        return handle

    def _authenticate(self, call: Call) -> None:
        scheme, _, credentials = call.headers.get("authorization", "").partition(" ")
        try:
            user, _, password = base64.b64decode(credentials, validate=True).decode().partition(":")
        except (binascii.Error, UnicodeDecodeError):
            user, password = "", ""
        if user.startswith("AC"):
            known = not self._keys.twilio_tokens or password in self._keys.twilio_tokens
            allowed = known and user == call.ids.get("sid", user)
        else:
            allowed = user.startswith("SK")
        if scheme.lower() != "basic" or not allowed or not password or password == "revoked":  # noqa: S105 - the magic one
            raise Refused(AUTHENTICATE)

    def create(self, db: sqlite3.Connection, call: Call) -> Answer:
        form = dict(call.form)
        body = checked(form)
        starts_at = scheduled_at(form)
        fate = text_fate(form["To"])
        sid, now = f"SM{uuid4().hex}", now_ms()
        steps = fate.steps if form.get("From") else (fate.steps[0]._replace(event="accepted"), *fate.steps[1:])
        message: Json = {
            "sid": sid,
            "account_sid": call.ids["sid"],
            "to": form["To"],
            "from": form.get("From"),
            "messaging_service_sid": form.get("MessagingServiceSid"),
            "body": body,
            "created_at": now,
            "fate": fate.name,
            "callback": form.get("StatusCallback"),
            "scheduled": starts_at is not None,
            "steps": [
                {"at": at(fate, place, starts_at or now), "status": step.event, **step.details}
                for place, step in enumerate(steps)
            ],
        }
        put(db, "text", message, id=sid, label=form["To"])
        if message["callback"]:
            self._call_back(db, message, fate)
        return as_json(201, shown(message, first=True), object_id=sid, hold=fate.hold, silent=fate.silent, request=form)

    def _call_back(self, db: sqlite3.Connection, message: Json, fate: Fate) -> None:
        for place, step in enumerate(message["steps"]):
            last = place == len(message["steps"]) - 1
            fields = {
                "AccountSid": message["account_sid"],
                "ApiVersion": "2010-04-01",
                "From": message["from"] or "",
                "MessageSid": message["sid"],
                "MessageStatus": step["status"],
                "SmsSid": message["sid"],
                "SmsStatus": step["status"],
                "To": message["to"],
            }
            if message["messaging_service_sid"]:
                fields["MessagingServiceSid"] = message["messaging_service_sid"]
            if step.get("ErrorCode"):
                fields["ErrorCode"] = str(step["ErrorCode"])
            if step["status"] in ("delivered", "undelivered"):
                fields["RawDlrDoneDate"] = f"{moment(step['at']):%y%m%d%H%M}"
            for _ in range(2 if fate.twice and last else 1):
                webhooks.add(
                    db,
                    "twilio",
                    subject=step["status"],
                    object_id=message["sid"],
                    url=message["callback"],
                    body=urlencode(fields).encode(),
                    after=max(0.0, (step["at"] - message["created_at"]) / 1000),
                )

    def fetch(self, db: sqlite3.Connection, call: Call) -> Answer:
        return as_json(200, shown(found(db, call)), object_id=call.ids["message"])

    def update(self, db: sqlite3.Connection, call: Call) -> Answer:
        message, form = found(db, call), dict(call.form)
        if form.get("Status") == "canceled":
            if not message["scheduled"] or status_of(message)["status"] != "scheduled":
                raise Refused(TwilioRefusal(30409, "The message is sent already or was never scheduled", 409))
            message["steps"] = [{"at": now_ms(), "status": "canceled"}]
            db.execute("DELETE FROM webhooks WHERE object_id = ? AND state = 'waiting'", (message["sid"],))
        elif form.get("Body") == "":
            message["body"] = ""
        else:
            raise Refused(TwilioRefusal(20001, "Only Status=canceled and an empty Body can be set"))
        put(db, "text", message, id=message["sid"], label=message["to"])
        return as_json(200, shown(message), object_id=message["sid"])

    def delete(self, db: sqlite3.Connection, call: Call) -> Answer:
        message = found(db, call)
        db.execute("DELETE FROM objects WHERE id = ?", (message["sid"],))
        return Answer(204, b"", object_id=message["sid"])

    def unknown(self, _db: sqlite3.Connection, call: Call) -> Answer:
        return refused(TwilioRefusal(20404, f"The requested resource {call.path} was not found", 404))

    def list(self, db: sqlite3.Connection, call: Call) -> Answer:
        query = dict(call.query)
        size, page = whole(query, "PageSize", 50, 1, 1000), whole(query, "Page", 0, 0, 10**6)
        messages = [
            shown(message) for message in kept_for(db, query.get("To")) if matches(message, query, call.ids["sid"])
        ]
        part = messages[page * size : (page + 1) * size]
        kept = {name: value for name, value in query.items() if name not in ("Page", "PageToken")}

        def address(number: int) -> str:
            token = {"PageToken": f"PASM{part[-1]['sid'][2:]}"} if number else {}
            return f"{call.path}?{urlencode({**kept, 'PageSize': size, 'Page': number, **token})}"

        more = len(messages) > (page + 1) * size
        content = {
            "end": page * size + max(len(part) - 1, 0),
            "first_page_uri": address(0),
            "messages": part,
            "next_page_uri": address(page + 1) if more else None,
            "page": page,
            "page_size": size,
            "previous_page_uri": address(page - 1) if page and part else None,
            "start": page * size,
            "uri": f"{call.path}?{urlencode(query)}" if query else call.path,
        }
        return as_json(200, content)


def found(db: sqlite3.Connection, call: Call) -> Json:
    message = get(db, "text", call.ids["message"])
    if message is None or message["account_sid"] != call.ids["sid"]:
        raise Refused(TwilioRefusal(20404, f"The requested resource {call.path} was not found", 404))
    return message


def kept_for(db: sqlite3.Connection, recipient: str | None) -> Iterator[Json]:
    """Newest first."""
    sql = (
        "SELECT body FROM objects WHERE kind = 'text'"
        + (" AND label = ?" if recipient else "")
        + " ORDER BY number DESC"
    )
    return (json.loads(row["body"]) for row in db.execute(sql, (recipient,) if recipient else ()).fetchall())


def matches(message: Json, query: dict[str, str], account: str) -> bool:
    # What is not sent yet counts by its creation: a search for a lost answer would miss it otherwise.
    when = sent_at(message) or message["created_at"]
    for name, value in query.items():
        field = name.replace(" ", "")
        if field in ("To", "From") and (message[field.lower()] or "") != value:
            return False
        if field in ("DateSent", "DateSent<", "DateSent>"):
            try:
                bound = instant(value)
            except ValueError:
                raise Refused(TwilioRefusal(20001, f"Invalid date: {value}")) from None
            day = timedelta(days=1) if len(value) == 10 else timedelta(seconds=1)
            too_early = when < bound.timestamp() * 1000 and field != "DateSent<"
            too_late = when >= (bound + day).timestamp() * 1000 and field != "DateSent>"
            if too_early or too_late:
                return False
    return bool(message["account_sid"] == account)


def whole(query: dict[str, str], name: str, default: int, minimum: int, maximum: int) -> int:
    text = query.get(name, str(default))
    if not text.isdecimal() or not minimum <= int(text) <= maximum:
        raise Refused(TwilioRefusal(20001, f"{name} must be between {minimum} and {maximum}"))
    return int(text)


def refused(refusal: TwilioRefusal) -> Answer:
    content: dict[str, Any] = refusal._asdict()
    content["more_info"] = f"https://www.twilio.com/docs/errors/{refusal.code}"
    return as_json(refusal.status, content)

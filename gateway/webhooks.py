"""
Receive the providers' webhooks: verify the bytes, commit events and jobs, then answer 200.

400 means that the signature or body is invalid. 503 means that the event is not stored; the provider retries.
"""

import asyncio
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import parse_qs, parse_qsl, urlencode

import structlog
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey
from starlette.types import ASGIApp, Receive, Scope, Send

from gateway import inbox
from gateway.bodies import parse_json, read_body
from gateway.inbox import OWNERS, Event
from gateway.signatures import (
    BadSignature,
    TwilioSecrets,
    verify_body_hash,
    verify_sendgrid,
    verify_stripe,
    verify_twilio,
)
from services.chassis import context, metrics
from services.chassis.database.transactions import Database
from services.chassis.errors import ServiceError, Unavailable
from services.chassis.http.problems import Refusal, answer

MAX_STRIPE_BYTES, MAX_SENDGRID_BYTES, MAX_TWILIO_BYTES = 1 << 20, 2 << 20, 64 << 10
STORED_WITHIN = 10.0  # seconds

log = structlog.get_logger()


@dataclass(frozen=True)
class Post:
    """One request as received."""

    headers: Mapping[bytes, bytes]
    path: str
    query: str
    body: bytes

    def header(self, name: bytes) -> bytes:
        return self.headers.get(name, b"")


class Webhook:
    """Bare ASGI, since a request of the framework costs more than a signature."""

    def __init__(
        self,
        path: str,
        database: Database,
        provider: str,
        read: Callable[[Post], Sequence[Event]],
        *,
        max_bytes: int,
        stored: Callable[[str], None],
    ) -> None:
        self.path = path
        self._database = database
        self._provider = provider
        self._read = read  #: Verifies and parses; raises BadSignature or Refusal.
        self._max_bytes = max_bytes
        self._stored = stored  #: Called with the name of the queue that has a new job.

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await self._take(scope, receive)
            response: ASGIApp = _accept
        except BadSignature as refusal:
            self._tell(refusal.reason, str(refusal))
            response = answer(Refusal(400, "BAD_SIGNATURE", str(refusal)))
        except (Refusal, ServiceError) as refusal:
            self._tell(refusal.reason, str(refusal))
            response = answer(refusal)
        await response(scope, receive, send)

    async def _take(self, scope: Scope, receive: Receive) -> None:
        if scope["method"] != "POST":
            raise Refusal(405, "METHOD_NOT_ALLOWED", "the method must be POST", {"allow": "POST"})
        body = await read_body(scope, receive, self._max_bytes)
        path = scope["raw_path"].decode("ascii", "replace")
        query = scope["query_string"].decode("ascii", "replace")
        events = self._read(Post(dict(scope["headers"]), path, query, body))
        try:
            async with asyncio.timeout(STORED_WITHIN):
                await self._database.add(inbox.take, events, context.trace())
        except TimeoutError:
            raise Unavailable("the inbox does not answer", reason="STORE_UNAVAILABLE") from None
        self._stored(OWNERS[self._provider])
        if self._provider == "stripe":  # the others' events have no ids
            context.note(event_id=events[0].event_id)

    def _tell(self, reason: str, detail: str) -> None:
        metrics.webhooks_rejected_total.labels(self._provider, reason).inc()
        log.warning("webhook.rejected", provider=self._provider, reason=reason, detail=detail)


async def _accept(_scope: Scope, _receive: Receive, send: Send) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"0")]})
    await send({"type": "http.response.body"})


def stripe_events(post: Post, secrets: Sequence[bytes], clock: Callable[[], float]) -> list[Event]:
    verify_stripe(post.header(b"stripe-signature"), post.body, secrets, clock())
    payload = parse_json(post.body)
    if not isinstance(payload, dict):
        raise Refusal(400, "MALFORMED_EVENT", "an event must be a JSON object")
    event_id, kind = _word(payload.get("id")), _word(payload.get("type"))
    account = _word(payload.get("account")) or _word(payload.get("context"))
    if not event_id or not kind:
        raise Refusal(400, "MALFORMED_EVENT", "an event must have an id and a type")
    # Two accounts may use the same id.
    key = f"{account}/{event_id}".removeprefix("/")
    return [Event("stripe", key, kind, post.body, account, livemode=int(payload.get("livemode") is True))]


def sendgrid_events(
    post: Post, keys: Sequence[EllipticCurvePublicKey], window: float, clock: Callable[[], float]
) -> list[Event]:
    signature = post.header(b"x-twilio-email-event-webhook-signature")
    moment = post.header(b"x-twilio-email-event-webhook-timestamp")
    verify_sendgrid(signature, moment, post.body, keys=keys, now=clock(), window=window)
    payload = parse_json(post.body)
    if not isinstance(payload, list) or not all(isinstance(item, dict) for item in payload):
        raise Refusal(400, "MALFORMED_EVENT", "the events must be a JSON list of objects")
    return [_sendgrid_event(item) for item in payload]


#: What tells one fact of SendGrid's from another.
FACT = ("sg_message_id", "event", "timestamp", "email", "email_id", "attempt", "type", "smtp-id")


def _sendgrid_event(item: Mapping[str, Any]) -> Event:
    # sg_event_id may change when a batch is sent again. A late bounce may lack sg_message_id: then the mail's own id
    # tells two bounces of one address in one second apart.
    event_id = _hash(item.get(name) for name in FACT)
    return Event("sendgrid", event_id, _word(item.get("event")) or "unknown", json.dumps(item).encode())


def twilio_events(post: Post, secrets: TwilioSecrets, public_url: str) -> list[Event]:
    signature, settings = post.header(b"x-twilio-signature"), post.header(b"x-twilio-webhooks-signature-settings")
    url = public_url + post.path + (f"?{post.query}" if post.query else "")
    body = post.body
    if post.header(b"content-type").partition(b";")[0].strip().lower() == b"application/json":
        verify_twilio(signature, settings, url, [], secrets)
        verify_body_hash(parse_qs(post.query).get("bodySHA256", []), body)
        form = _form(parse_json(body))
        body = urlencode(form).encode()
    else:
        try:
            form = parse_qsl(body.decode(), keep_blank_values=True, errors="strict", max_num_fields=200)
        except ValueError:
            raise BadSignature("BODY_MALFORMED", "the body must be a form in UTF-8") from None
        verify_twilio(signature, settings, url, form, secrets)
    payload = dict(form)
    message, status = _word(payload.get("MessageSid")), _word(payload.get("MessageStatus"))
    if not message or not status:
        raise Refusal(400, "MALFORMED_EVENT", "a status callback must have MessageSid and MessageStatus")
    return [Event("twilio", _hash((message, status, post.query)), status, body, query=post.query)]


def _form(payload: object) -> list[tuple[str, str]]:
    """Convert a JSON callback to the form that the service reads."""
    if not isinstance(payload, dict):
        raise Refusal(400, "MALFORMED_EVENT", "a status callback must be a JSON object")
    return [
        (name, value if isinstance(value, str) else json.dumps(value))
        for name, value in payload.items()
        if value is not None
    ]


def _word(value: object) -> str:
    """Return a printable text of at most 255 characters, or an empty one for anything else."""
    return value if isinstance(value, str) and len(value) <= 255 and value.isprintable() else ""


def _hash(parts: Any) -> str:
    """Hash the parts that identify an event, since they include an address."""
    return hashlib.sha256(json.dumps(list(parts)).encode()).hexdigest()

"""Stripe at its own paths: https://docs.stripe.com/api"""

import json
import sqlite3
from collections.abc import Callable

from starlette.routing import Route

from sandbox.door import Door, Handler
from sandbox.exchange import Answer, Call, as_json
from sandbox.faults import Fault
from sandbox.form import nested
from sandbox.idempotency import fingerprint, keep, replay
from sandbox.payment_intents import API_VERSION, Desk
from sandbox.state import Json, get, random_id
from sandbox.stripe_errors import StripeError, missing, wrong
from sandbox.stripe_params import (
    CANCEL,
    CAPTURE,
    CONFIRM,
    CREATE,
    LIST_EVENTS,
    LIST_INTENTS,
    UPDATE,
    Operation,
    checked,
)

Act = Callable[[Desk, Call, Json], Json]

FOR_STATUS = {
    401: "invalid_request_error",
    402: "card_error",
    404: "invalid_request_error",
    429: "invalid_request_error",
}


def create(desk: Desk, _call: Call, params: Json) -> Json:
    return desk.create(params)


def retrieve(desk: Desk, call: Call, _params: Json) -> Json:
    return found(desk.db, "payment_intent", call, "intent")


def update(desk: Desk, call: Call, params: Json) -> Json:
    return desk.update(found(desk.db, "payment_intent", call, "intent"), params)


def confirm(desk: Desk, call: Call, params: Json) -> Json:
    return desk.confirm(found(desk.db, "payment_intent", call, "intent"), params)


def cancel(desk: Desk, call: Call, params: Json) -> Json:
    return desk.cancel(found(desk.db, "payment_intent", call, "intent"), params.get("cancellation_reason"))


def capture(desk: Desk, call: Call, params: Json) -> Json:
    return desk.capture(found(desk.db, "payment_intent", call, "intent"), params.get("amount_to_capture"))


def retrieve_charge(desk: Desk, call: Call, _params: Json) -> Json:
    return found(desk.db, "charge", call, "charge")


def retrieve_event(desk: Desk, call: Call, _params: Json) -> Json:
    return found(desk.db, "event", call, "id")


def list_intents(desk: Desk, _call: Call, params: Json) -> Json:
    return page_of(desk.db, "payment_intent", "/v1/payment_intents", params)


def list_events(desk: Desk, _call: Call, params: Json) -> Json:
    return page_of(desk.db, "event", "/v1/events", params)


def found(db: sqlite3.Connection, kind: str, call: Call, param: str) -> Json:
    id = call.ids["id"]
    body = get(db, kind, id)
    if body is None:
        raise missing(id, kind, param)
    return body


def expanded(db: sqlite3.Connection, content: Json, paths: list[str]) -> Json:
    """Put charges in the place of their ids: https://docs.stripe.com/expand"""
    for path in paths:
        inner, _, field = path.rpartition(".")
        if field != "latest_charge" or inner not in {"", "data"} or (inner == "data") != (content["object"] == "list"):
            raise wrong("expand", f"This property cannot be expanded ({path}).")
        for intent in content["data"] if inner else [content]:
            intent[field] = get(db, "charge", intent[field] or "")
    return content


UNDELIVERED = "EXISTS (SELECT 1 FROM webhooks WHERE object_id = objects.id AND state <> 'delivered')"


def page_of(db: sqlite3.Connection, kind: str, url: str, params: Json) -> Json:
    """Newest first, which the number tells and `created` with its whole seconds does not."""
    where, values = ["kind = ?"], [kind]
    types = params.get("types") or ([params["type"]] if params.get("type") else [])
    if types:
        # "payment_intent.*" stands for a family.
        where.append("(" + " OR ".join("label GLOB ?" for _ in types) + ")")
        values += types
    for param, sign in (("starting_after", "<"), ("ending_before", ">")):
        if params.get(param):
            if get(db, kind, params[param]) is None:
                raise missing(params[param], kind, param)
            where.append(f"number {sign} (SELECT number FROM objects WHERE id = ?)")
            values.append(params[param])
    created = params.get("created")
    for name, bound in (created if isinstance(created, dict) else {"eq": created} if created else {}).items():
        where.append(f"json_extract(body, '$.created') {SIGNS[name]} ?")
        values.append(bound)
    if kind == "event" and params.get("delivery_success") is not None:
        where.append(("NOT " if params["delivery_success"] else "") + UNDELIVERED)
    limit = params.get("limit") or 10
    order = "ASC" if params.get("ending_before") else "DESC"
    sql = f"SELECT body FROM objects WHERE {' AND '.join(where)} ORDER BY number {order} LIMIT ?"
    rows = [json.loads(row["body"]) for row in db.execute(sql, (*values, limit + 1))]
    page = rows[:limit] if order == "DESC" else rows[:limit][::-1]
    return {"object": "list", "data": page, "has_more": len(rows) > limit, "url": url}


SIGNS = {"gt": ">", "gte": ">=", "lt": "<", "lte": "<=", "eq": "="}


class Stripe:
    name = "stripe"

    def __init__(self) -> None:
        self._running: set[str] = set()

    def started(self, call: Call) -> Answer | None:
        key = call.headers.get("idempotency-key")
        if not key or call.method != "POST":
            return None
        if key in self._running:
            message = f"Another request with the idempotency key '{key}' is still running."
            return self._refused(call, StripeError(409, message, code="idempotency_key_in_use"), random_id("req_"))
        self._running.add(key)
        return None

    def ended(self, call: Call) -> None:
        self._running.discard(call.headers.get("idempotency-key", ""))

    def refusal(self, db: sqlite3.Connection, call: Call, fault: Fault) -> Answer:
        status = 429 if fault.kind == "throttle" else fault.status
        code = fault.code or ("rate_limit" if status == 429 else "card_declined" if status == 402 else None)
        error = StripeError(
            status,
            fault.message or f"The sandbox was asked to answer {status}.",
            type=FOR_STATUS.get(status, "api_error" if status >= 500 else "invalid_request_error"),
            code=code,
        )
        answer = self._refused(call, error, random_id("req_"))
        if fault.retry_after is not None:
            answer.headers["Retry-After"] = fault.retry_after
        key = call.headers.get("idempotency-key")
        if key and call.method == "POST" and fault.stored:
            return self._kept(db, key, call, answer)
        return answer

    def _kept(self, db: sqlite3.Connection, key: str, call: Call, answer: Answer) -> Answer:
        """Return what the key was answered before, or keep this answer for it."""
        try:
            kept = replay(db, key, call)
        except StripeError as error:
            return self._refused(call, error, random_id("req_"))
        if kept is None:
            keep(db, key, fingerprint(call), answer)
            return answer
        return repeated(kept, call, random_id("req_"))

    def handler(self, operation: Operation, act: Act) -> Handler:
        def handle(db: sqlite3.Connection, call: Call) -> Answer:
            request_id = random_id("req_")
            key = call.headers.get("idempotency-key") if call.method == "POST" else None
            desk = Desk(db, call.origin, request_id, key)
            try:
                authenticate(call)
                if key and (kept := replay(db, key, call)):
                    return repeated(kept, call, request_id)
                params = nested(call.query + call.form)
                content = expanded(db, act(desk, call, checked(operation, params)), params.get("expand") or [])
                answer = as_json(200, content, headers=standard(call, request_id), object_id=content.get("id"))
                answer.idempotency_key = key
                stored = True
            except StripeError as error:
                answer, stored = self._refused(call, error, request_id), error.stored
            if key and stored:
                keep(db, key, fingerprint(call), answer)
            answer.request = nested(call.query + call.form)
            return answer

        return handle

    def unknown(self, _db: sqlite3.Connection, call: Call) -> Answer:
        message = f"Unrecognized request URL ({call.method}: {call.path})."
        return self._refused(call, StripeError(404, message), random_id("req_"))

    def _refused(self, call: Call, error: StripeError, request_id: str) -> Answer:
        intent = error.error.get("payment_intent") or {}
        return as_json(
            error.status,
            {"error": error.error},
            headers=standard(call, request_id),
            object_id=intent.get("id"),
            idempotency_key=call.headers.get("idempotency-key"),
        )

    def routes(self, door: Door) -> list[Route]:
        one = "/v1/payment_intents/{id}"
        read = Operation(frozenset())
        table: list[tuple[str, str, Operation, Act]] = [
            ("POST", "/v1/payment_intents", CREATE, create),
            ("GET", "/v1/payment_intents", LIST_INTENTS, list_intents),
            ("GET", one, Operation(frozenset({"client_secret"})), retrieve),
            ("POST", one, UPDATE, update),
            ("POST", f"{one}/confirm", CONFIRM, confirm),
            ("POST", f"{one}/cancel", CANCEL, cancel),
            ("POST", f"{one}/capture", CAPTURE, capture),
            ("GET", "/v1/charges/{id}", read, retrieve_charge),
            ("GET", "/v1/events", LIST_EVENTS, list_events),
            ("GET", "/v1/events/{id}", read, retrieve_event),
        ]
        known = [door.route(self, method, path, self.handler(operation, act)) for method, path, operation, act in table]
        others = [door.route(self, method, "/v1/{rest:path}", self.unknown) for method in ("GET", "POST", "DELETE")]
        return known + others


def authenticate(call: Call) -> None:
    scheme, _, key = call.headers.get("authorization", "").partition(" ")
    if scheme.lower() != "bearer" or not key:
        raise StripeError(401, "No API key was given: it belongs into the Authorization header, as a bearer token.")
    if not key.startswith(("sk_test_", "rk_test_")) or key == "sk_test_revoked":
        raise StripeError(401, f"Invalid API Key provided: {key[:8]}***{key[-4:] if len(key) > 16 else ''}")


def repeated(kept: Answer, call: Call, request_id: str) -> Answer:
    kept.headers |= {**standard(call, request_id), "Original-Request": kept.headers["Original-Request"]}
    return kept


def standard(call: Call, request_id: str) -> dict[str, str]:
    headers = {"Request-Id": request_id, "Stripe-Version": call.headers.get("stripe-version", API_VERSION)}
    if key := call.headers.get("idempotency-key"):
        headers |= {"Idempotency-Key": key, "Original-Request": request_id}
    return headers

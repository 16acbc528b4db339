"""The sandbox's own routes: faults, the ledger, what was received, and what the payment page's buttons do."""

import json
import sqlite3
from collections.abc import Callable

from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from sandbox import faults, ledger, mails, webhooks
from sandbox.payment_intents import Desk
from sandbox.signatures import Keys
from sandbox.state import Json, State, get, newest
from sandbox.stripe_errors import StripeError, missing
from sandbox.texts import shown
from sandbox.webhooks import Sender

DECISIONS: dict[str, Callable[[Desk, Json], Json]] = {"pay": Desk.pay, "decline": Desk.decline}


def decide(db: sqlite3.Connection, id: str, decision: str, origin: str) -> Json:
    """Let the customer pay or decline; `id` is Stripe's, or metadata.topsmile_payment_id."""
    sql = "SELECT id FROM objects WHERE kind = 'payment_intent' AND label = ? ORDER BY number DESC LIMIT 1"
    row = db.execute(sql, (id,)).fetchone()
    intent = get(db, "payment_intent", row["id"] if row else id)
    if intent is None:
        raise missing(id, "payment_intent", "intent")
    return DECISIONS[decision](Desk(db, origin), intent)


class Control:
    def __init__(self, state: State, sender: Sender, keys: Keys) -> None:
        self._state, self._sender, self._keys = state, sender, keys

    def routes(self) -> list[Route]:
        return [
            Route("/healthz", self.healthy),
            Route("/_sandbox/faults", self.add_faults, methods=["POST"]),
            Route("/_sandbox/faults", self.clear_faults, methods=["DELETE"]),
            Route("/_sandbox/faults", self.list_faults),
            Route("/_sandbox/ledger", self.read_ledger),
            Route("/_sandbox/messages", self.read_messages),
            Route("/_sandbox/webhooks", self.read_webhooks),
            Route("/_sandbox/webhooks/flush", self.flush_webhooks, methods=["POST"]),
            Route("/_sandbox/keys", self.show_keys),
            Route("/_sandbox/payments/{id}/{decision}", self.decide, methods=["POST"]),
        ]

    async def healthy(self, _request: Request) -> Response:
        return PlainTextResponse("ok")

    async def add_faults(self, request: Request) -> Response:
        """One fault, or a list of them that are all taken or all refused."""
        try:
            content = json.loads(await request.body())
            with self._state.transaction() as db:
                numbers = [faults.add(db, fault) for fault in (content if isinstance(content, list) else [content])]
        except (ValueError, TypeError, AttributeError) as problem:
            return JSONResponse({"error": str(problem)}, 400)
        return JSONResponse({"numbers": numbers}, 201)

    async def clear_faults(self, request: Request) -> Response:
        with self._state.transaction() as db:
            return JSONResponse({"cleared": faults.clear(db, request.query_params.get("provider"))})

    async def list_faults(self, _request: Request) -> Response:
        with self._state.transaction() as db:
            return JSONResponse({"faults": faults.all_faults(db)})

    async def read_ledger(self, request: Request) -> Response:
        try:
            since, limit = number(request, "since", 0), number(request, "limit", 1000)
        except ValueError as problem:
            return JSONResponse({"error": str(problem)}, 400)
        with self._state.transaction() as db:
            return JSONResponse({"entries": ledger.read(db, request.query_params.get("provider"), since, limit)})

    async def read_messages(self, request: Request) -> Response:
        provider = request.query_params.get("provider", "")
        with self._state.transaction() as db:
            if provider == "sendgrid":
                return JSONResponse({"messages": [mails.shown(mail) for mail in newest(db, "mail", 500)]})
            if provider == "twilio":
                return JSONResponse({"messages": [shown(text) for text in newest(db, "text", 500)]})
        return JSONResponse({"error": "provider: sendgrid or twilio"}, 400)

    async def read_webhooks(self, request: Request) -> Response:
        try:
            limit = number(request, "limit", 200)
        except ValueError as problem:
            return JSONResponse({"error": str(problem)}, 400)
        with self._state.transaction() as db:
            return JSONResponse({"webhooks": webhooks.outbox(db, limit)})

    async def flush_webhooks(self, request: Request) -> Response:
        with self._state.transaction() as db:
            flushed = webhooks.flush(db, request.query_params.get("provider"))
        self._sender.wake()
        return JSONResponse({"flushed": flushed})

    async def show_keys(self, _request: Request) -> Response:
        return JSONResponse(self._keys.shown())

    async def decide(self, request: Request) -> Response:
        id, decision = request.path_params["id"], request.path_params["decision"]
        if decision not in DECISIONS:
            return JSONResponse({"error": "pay or decline"}, 404)
        try:
            with self._state.transaction() as db:
                intent = decide(db, id, decision, str(request.base_url).rstrip("/"))
        except StripeError as error:
            return JSONResponse({"error": error.error}, error.status)
        self._sender.wake()
        return JSONResponse(intent)


def number(request: Request, name: str, default: int) -> int:
    """ValueError if it is none."""
    return int(request.query_params.get(name, default))

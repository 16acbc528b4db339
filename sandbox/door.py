"""
The one way in for every provider's requests: faults, the transaction, the ledger, and how the answer leaves.

A provider is a table of routes, each a function (db, call) -> Answer that runs inside the transaction.
"""

import asyncio
import json
import socket
import sqlite3
import struct
from collections.abc import Callable
from typing import Any, Protocol
from urllib.parse import parse_qsl

from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from sandbox import faults, ledger
from sandbox.exchange import Answer, Call
from sandbox.state import State
from sandbox.webhooks import Sender

Handler = Callable[[sqlite3.Connection, Call], Answer]

FORM = "application/x-www-form-urlencoded"
BODY_AT_MOST = 31 * 1024 * 1024


class Provider(Protocol):
    name: str

    def refusal(self, db: sqlite3.Connection, call: Call, fault: faults.Fault) -> Answer:
        """The provider's own body and headers for the status that a fault asks for."""

    def started(self, call: Call) -> Answer | None:
        """Called when a request comes in; an answer refuses it because its twin is still running."""

    def ended(self, call: Call) -> None: ...


class ConnectionProtocol(HttpToolsProtocol):
    """Hands the transport to the application, which alone can cut a connection short."""

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self.scope["extensions"] = {"sandbox.transport": {"transport": self.transport}}


class CutShort(Response):
    """Promises the whole body and sends `part` of it, or with nothing to say resets the connection."""

    def __init__(self, answer: Answer | None, *, hold: float = 0.0) -> None:
        super().__init__()
        self._answer, self._hold = answer, hold

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        transport = scope["extensions"]["sandbox.transport"]["transport"]
        gone = asyncio.create_task(_gone(receive))
        try:
            await asyncio.wait([gone], timeout=self._hold)
            if self._answer is None:
                # Closing with a linger of zero seconds is what makes it a reset and no orderly end.
                transport.get_extra_info("socket").setsockopt(
                    socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0)
                )
                transport.abort()
            else:
                whole = Response(self._answer.body, self._answer.status, self._answer.headers)
                await send({"type": "http.response.start", "status": whole.status_code, "headers": whole.raw_headers})
                part = self._answer.body[: len(self._answer.body) // 2]
                await send({"type": "http.response.body", "body": part, "more_body": True})
                transport.close()
            # The server must see the end of the connection before it sees the end of this call.
            await asyncio.wait([gone], timeout=5)
        finally:
            gone.cancel()


async def _gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


class Door:
    def __init__(self, state: State, sender: Sender) -> None:
        self._state, self._sender = state, sender

    def route(self, provider: Provider, method: str, path: str, handler: Handler) -> Route:
        async def endpoint(request: Request) -> Response:
            try:
                call = await _read(request)
            except ClientDisconnect:
                return Response(status_code=400)
            twin = provider.started(call)
            if twin is not None:
                return self._finish(provider, call, twin, None)
            try:
                return await self._answer(provider, call, handler)
            finally:
                provider.ended(call)

        return Route(path, endpoint, methods=[method])

    async def _answer(self, provider: Provider, call: Call, handler: Handler) -> Response:
        with self._state.transaction() as db:
            fault = faults.take(db, provider.name, f"{call.method} {call.path}", faults.REQUESTS)
            if fault is not None and fault.before_accepting:
                answer = Answer(0, b"") if fault.kind == "reset" else provider.refusal(db, call, fault)
                answer.outcome = answer.outcome or "faulted"
                ledger.write(db, provider.name, call, answer, fault.kind)
                return CutShort(None) if fault.kind == "reset" else _response(answer)
        if fault is not None and fault.kind == "delay":
            await asyncio.sleep(fault.seconds)
        with self._state.transaction() as db:
            answer = handler(db, call)
            ledger.write(db, provider.name, call, answer, None if fault is None else fault.kind)
        self._sender.wake()
        if fault is not None and fault.kind == "alter" and answer.body:
            answer.body = json.dumps({**json.loads(answer.body), **(fault.fields or {})}).encode()
        elif fault is not None and fault.kind not in {"delay", "alter"}:
            return _interfered(answer, fault)
        if answer.silent:
            return CutShort(None, hold=answer.hold)
        await asyncio.sleep(answer.hold)
        return _response(answer)

    def _finish(self, provider: Provider, call: Call, answer: Answer, fault: str | None) -> Response:
        with self._state.transaction() as db:
            ledger.write(db, provider.name, call, answer, fault)
        return _response(answer)


def _interfered(answer: Answer, fault: faults.Fault) -> Response:
    if fault.kind == "hang_after_accepting":
        return CutShort(None, hold=fault.seconds)
    return CutShort(answer) if fault.kind == "truncate" else CutShort(None)


def _response(answer: Answer) -> Response:
    headers = {"Content-Type": "application/json", **answer.headers}
    return Response(answer.body, answer.status, headers)


async def _read(request: Request) -> Call:
    body = bytearray()
    async for chunk in request.stream():
        # The rest is read and thrown away: enough to see that it is too much.
        body += chunk[: BODY_AT_MOST - len(body)]
    content_type = request.headers.get("content-type", "")
    form = parse_qsl(body.decode("utf-8", "replace"), keep_blank_values=True) if content_type.startswith(FORM) else []
    query = parse_qsl(request.url.query, keep_blank_values=True)
    ids: dict[str, Any] = request.path_params
    origin = str(request.base_url).rstrip("/")
    return Call(request.method, request.url.path, origin, request.headers, query, form, bytes(body), ids)

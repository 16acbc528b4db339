"""The least that a durable webhook costs here: bare ASGI, the HMAC, one row in a grouped commit of our SQLite."""

import hashlib
import hmac
import json
import os

from starlette.types import Receive, Scope, Send

from bench.peers.listening import run, serve_http
from services.chassis.database.sqlite import SQLite
from services.chassis.database.transactions import rows

SECRET = os.environ["STRIPE_WEBHOOK_SECRET"].encode()
INSERT = "INSERT INTO event (id, type, body) VALUES (:id, :type, :body) ON CONFLICT (id) DO NOTHING"


async def main() -> None:
    database = await SQLite.open(os.environ["PEER_DATABASE"])
    await database.run(rows, "CREATE TABLE IF NOT EXISTS event (id TEXT PRIMARY KEY, type TEXT, body BLOB)")

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        body = b""
        while True:
            message = await receive()
            body += message.get("body", b"")
            if not message.get("more_body"):
                break
        signed = dict(part.split(b"=") for part in dict(scope["headers"])[b"stripe-signature"].split(b","))
        proof = hmac.new(SECRET, signed[b"t"] + b"." + body, hashlib.sha256).hexdigest().encode()
        genuine = hmac.compare_digest(proof, signed[b"v1"])
        if genuine:
            event = json.loads(body)
            await database.run(rows, INSERT, id=event["id"], type=event["type"], body=body)
        status = 200 if genuine else 400
        await send({"type": "http.response.start", "status": status, "headers": [(b"content-length", b"0")]})
        await send({"type": "http.response.body", "body": b""})

    try:
        await serve_http(app)
    finally:
        await database.close()


if __name__ == "__main__":
    run(main())

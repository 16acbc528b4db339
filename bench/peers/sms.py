"""
Three other ways to take a SendSms: python -m bench.peers.sms echo|outbox|sdk

echo    answers and does nothing: what gRPC itself costs
outbox  one row in a grouped commit, the answer, one POST by aiohttp, the outcome in another grouped commit
sdk     calls Twilio's library in the RPC and stores nothing
"""

import asyncio
import os
import sys
from typing import Any

import aiohttp
from twilio.http.async_http_client import AsyncTwilioHttpClient
from twilio.rest import Client

from bench.peers.listening import run, serve_rpc
from services.chassis.database.sqlite import SQLite
from services.chassis.database.transactions import rows
from topsmile.sms.v1 import sms_pb2 as pb

METHOD = "topsmile.sms.v1.SmsService/SendSms"
ACCOUNT, SENDER = "AC" + "0" * 32, "+15005550006"
TABLE = "CREATE TABLE IF NOT EXISTS sms (id TEXT PRIMARY KEY, recipient TEXT, body TEXT, sid TEXT, status TEXT)"
INSERT = "INSERT INTO sms (id, recipient, body, status) VALUES (:id, :recipient, :body, 'QUEUED')"
SENT = "UPDATE sms SET status = 'SENT', sid = :sid WHERE id = :id"


def answer(id: str, recipient: str) -> pb.SendSmsResponse:
    return pb.SendSmsResponse(sms=pb.Sms(sms_id=id, recipient=recipient))


async def echo() -> None:
    async def send(request: pb.SendSmsRequest, _rpc: Any) -> pb.SendSmsResponse:
        return answer(request.idempotency_key, request.recipient)

    await serve_rpc(METHOD, send, pb.SendSmsRequest, pb.SendSmsResponse)


async def outbox() -> None:
    database = await SQLite.open(os.environ["PEER_DATABASE"])
    await database.run(rows, TABLE)
    url = f"{os.environ['TWILIO_API_BASE']}/2010-04-01/Accounts/{ACCOUNT}/Messages.json"
    posts: set[asyncio.Task[None]] = set()
    async with aiohttp.ClientSession(auth=aiohttp.BasicAuth(ACCOUNT, "token")) as http:

        async def post(request: pb.SendSmsRequest) -> None:
            form = {"To": request.recipient, "From": SENDER, "Body": request.body}
            async with http.post(url, data=form) as response:
                sid = (await response.json())["sid"]
            await database.run(rows, SENT, id=request.idempotency_key, sid=sid)

        async def send(request: pb.SendSmsRequest, _rpc: Any) -> pb.SendSmsResponse:
            row = {"id": request.idempotency_key, "recipient": request.recipient, "body": request.body}
            await database.run(rows, INSERT, **row)
            task = asyncio.create_task(post(request))
            posts.add(task)
            task.add_done_callback(posts.discard)
            return answer(request.idempotency_key, request.recipient)

        await serve_rpc(METHOD, send, pb.SendSmsRequest, pb.SendSmsResponse)
    await database.close()


async def sdk() -> None:
    http = AsyncTwilioHttpClient()
    client = Client(ACCOUNT, "token", http_client=http)
    client.api.base_url = os.environ["TWILIO_API_BASE"]

    async def send(request: pb.SendSmsRequest, _rpc: Any) -> pb.SendSmsResponse:
        sent = await client.messages.create_async(to=request.recipient, from_=SENDER, body=request.body)
        return answer(str(sent.sid), request.recipient)

    await serve_rpc(METHOD, send, pb.SendSmsRequest, pb.SendSmsResponse)
    await http.close()


if __name__ == "__main__":
    run({"echo": echo, "outbox": outbox, "sdk": sdk}[sys.argv[1]]())

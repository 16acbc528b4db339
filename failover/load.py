"""Callers. Each makes one request after another, and repeats it with the same key until it succeeds."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import json
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any

import aiohttp
import grpc
from google.protobuf.timestamp_pb2 import Timestamp

from failover.journal import Call, Journal, Refused
from failover.system import System
from topsmile.common.v1 import common_pb2 as common
from topsmile.email.v1 import email_pb2, email_pb2_grpc
from topsmile.sms.v1 import sms_pb2, sms_pb2_grpc

#: Callers of each kind, and the seconds that each rests between two things.
CALLERS, REST = 3, 0.5
#: Seconds an attempt may take, and until the next.
ATTEMPT, AGAIN = 4.0, 0.2
#: One in so many is asked for again after it was acknowledged: the answer must be the same.
REPEATED = 5

PASSING = {
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.DEADLINE_EXCEEDED,
    grpc.StatusCode.ABORTED,
    grpc.StatusCode.RESOURCE_EXHAUSTED,
}
ROUND_ROBIN = (("grpc.service_config", json.dumps({"loadBalancingConfig": [{"round_robin": {}}]})),)


class Callers:
    def __init__(self, system: System, journal: Journal, http: aiohttp.ClientSession, email: Any, sms: Any) -> None:
        self._system = system
        self._journal = journal
        self._http = http
        self.email = email_pb2_grpc.EmailServiceStub(email)
        self.sms = sms_pb2_grpc.SmsServiceStub(sms)
        self._acts: dict[str, Callable[[Call], Awaitable[str]]] = {
            "payment": self._pay,
            "email": self._mail,
            "sms": self._text,
            "webhook": self._post_webhook,
        }
        self._enough = asyncio.Event()

    async def run(self, seed: int) -> None:
        """Until `stop`."""
        async with asyncio.TaskGroup() as group:
            for kind in self._acts:
                for number in range(CALLERS):
                    group.create_task(self._call_on(kind, random.Random(f"{seed}{kind}{number}")))

    def stop(self) -> None:
        """Want nothing new; what is under way gets its answer."""
        self._enough.set()

    async def _call_on(self, kind: str, dice: random.Random) -> None:
        while not self._enough.is_set():
            call = self._journal.call(kind)
            await self._insist(call)
            if call.id and dice.randrange(REPEATED) == 0:
                await self._insist(call)
            with suppress(TimeoutError):
                await asyncio.wait_for(self._enough.wait(), REST * dice.uniform(0.5, 1.5))

    async def _insist(self, call: Call) -> None:
        while True:
            began = time.monotonic()
            try:
                self._journal.record_response(call, await self._acts[call.kind](call), began)
            except Refused as refusal:
                self._journal.refused(call, refusal)
                if refusal.final:
                    return
                await asyncio.sleep(AGAIN)
            else:
                return

    async def _pay(self, call: Call) -> str:
        """Open a payment, and once it is acknowledged be the customer who pays it."""
        body = {
            "amount": {"amount_minor": 15000, "currency": "BRL"},
            "appointment_id": call.key,
            "patient_id": f"patient-{call.number}",
            "description": call.key,  # Stripe stores it, so its side can be counted
            "payer": {"name": "Ana Souza", "email": call.address, "phone": call.phone},
        }
        url = self._gateway(call) + "/v1/payments"
        answer = await self._post(url, json=body, headers={"Idempotency-Key": call.key})
        id = str(answer["payment"]["payment_id"])
        if not call.id:
            await self._post(f"{self._system.sandbox}/_sandbox/payments/{id}/pay")
        return id

    async def _mail(self, call: Call) -> str:
        request = email_pb2.SendAppointmentConfirmationRequest(
            idempotency_key=call.key,
            recipient=email_pb2.Recipient(address=call.address, name="Ana Souza"),
            appointment=common.Appointment(
                appointment_id=call.key,
                patient_name="Ana Souza",
                professional="Dra. Beatriz Lima",
                clinic="TopSmile Pinheiros",
                address="Rua dos Pinheiros, 100, São Paulo",
                start_time=moment("2035-03-14T17:30:00Z"),
                end_time=moment("2035-03-14T18:15:00Z"),
            ),
        )
        answer = await ask(self.email.SendAppointmentConfirmation(request, timeout=ATTEMPT))
        return str(answer.email.email_id)

    async def _text(self, call: Call) -> str:
        request = sms_pb2.SendSmsRequest(idempotency_key=call.key, recipient=call.phone, body=f"Aviso {call.number}")
        return str((await ask(self.sms.SendSms(request, timeout=ATTEMPT))).sms.sms_id)

    async def _post_webhook(self, call: Call) -> str:
        """Post a signed event of a type that nothing here depends on: it is stored and settled all the same."""
        event = {"id": f"evt_{call.key}", "object": "event", "type": "customer.created", "livemode": False}
        body, now = json.dumps({**event, "data": {"object": {"id": "cus_1", "object": "customer"}}}), int(time.time())
        secret = self._system.settings["STRIPE_WEBHOOK_SECRET"].encode()
        signature = hmac.new(secret, f"{now}.{body}".encode(), hashlib.sha256).hexdigest()
        headers = {"Stripe-Signature": f"t={now},v1={signature}", "Content-Type": "application/json"}
        await self._post(self._gateway(call) + "/webhooks/stripe", data=body, headers=headers)
        return str(event["id"])

    def _gateway(self, call: Call) -> str:
        return self._system.gateways[call.number % len(self._system.gateways)]

    async def _post(self, url: str, **content: Any) -> Any:
        try:
            async with self._http.post(url, **content, timeout=aiohttp.ClientTimeout(ATTEMPT)) as answer:
                body = await answer.text()
                response = json.loads(body) if body else {}
                if answer.status < 300:
                    return response
                reason = str(response.get("reason", ""))
        except (aiohttp.ClientError, TimeoutError) as error:
            raise Refused(type(error).__name__) from error
        passing = answer.status >= 500 or answer.status == 429 or reason in ("IN_PROGRESS", "PROVIDER_BUSY")
        raise Refused(f"{answer.status} {reason}", final=not passing)


async def ask(call: Awaitable[Any]) -> Any:
    try:
        return await call
    except grpc.aio.AioRpcError as error:
        raise Refused(error.code().name, final=error.code() not in PASSING) from error


def moment(text: str) -> Timestamp:
    stamp = Timestamp()
    stamp.FromJsonString(text)
    return stamp


@asynccontextmanager
async def callers(system: System, journal: Journal) -> AsyncIterator[Callers]:
    async with (
        aiohttp.ClientSession() as http,
        grpc.aio.insecure_channel(system.settings["EMAIL_TARGET"], options=ROUND_ROBIN) as email,
        grpc.aio.insecure_channel(system.settings["SMS_TARGET"], options=ROUND_ROBIN) as sms,
    ):
        yield Callers(system, journal, http, email, sms)

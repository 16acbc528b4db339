"""
Play the demo against a running system: python -m launch.demo (`make demo`)

An appointment is confirmed by email and text, a payment is made and paid on the sandbox's page, and its webhook brings
the receipt. What is not running is started on free ports, with the sandbox, whatever `.env` says.
"""

from __future__ import annotations

import asyncio
import os
import secrets
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import aiohttp
import grpc

from launch.settings import PROVIDERS, complete, merged
from launch.system import StartError, System, running
from topsmile.common.v1 import common_pb2 as common
from topsmile.email.v1 import email_pb2, email_pb2_grpc
from topsmile.sms.v1 import sms_pb2, sms_pb2_grpc

FOLDER = Path("var")
#: Seconds for each step of the demo.
PATIENCE = 25.0


class Demo:
    """The steps so far, told with the time they took."""

    def __init__(self) -> None:
        self._started = time.monotonic()

    def tell(self, step: str) -> None:
        print(f"  {time.monotonic() - self._started:6.2f} s  {step}", flush=True)


class DemoError(Exception):
    """A step did not come true."""


PROBLEMS = (
    DemoError,
    StartError,
    TimeoutError,
    OSError,
    subprocess.CalledProcessError,
    aiohttp.ClientError,
    grpc.aio.AioRpcError,
)


async def until(what: str, look: Callable[[], Awaitable[Any]]) -> Any:
    """Look again and again until there is something to see."""
    try:
        async with asyncio.timeout(PATIENCE):
            while True:
                if found := await look():
                    return found
                await asyncio.sleep(0.1)
    except TimeoutError:
        raise DemoError(f"{what}: not within {PATIENCE:.0f} s") from None


class Clinic:
    """Somebody who uses the system as a clinic's software does: HTTP to the gateway, gRPC to email and sms."""

    def __init__(self, system: System, http: aiohttp.ClientSession, email: Any, sms: Any) -> None:
        self._system = system
        self._http = http
        self._email = email
        self._sms = sms
        token = system.settings.get("CLINIC_TOKEN")
        self._credentials = {"authorization": f"Bearer {token}"} if token else {}
        self._run = secrets.token_hex(4)
        self._appointment = f"apt_{self._run}"
        self._patient = {
            "name": "Ana Souza",
            "email": f"ana+{self._run}@example.com",
            "phone": f"+55119{secrets.randbelow(10**8):08}",
        }

    async def _ask(self, method: str, url: str, body: object = None) -> Any:
        headers = {"Idempotency-Key": f"{self._run}:{url}"}
        if url.startswith(f"{self._system.gateway}/"):
            headers |= self._credentials
        async with self._http.request(method, url, json=body, headers=headers) as answer:
            if answer.status >= 300:
                raise DemoError(f"{method} {url}: {answer.status} {await answer.text()}")
            return await answer.json()

    async def email_delivered(self, email_id: str) -> bool:
        request, credentials = email_pb2.GetEmailRequest(email_id=email_id), tuple(self._credentials.items())
        found = await self._email.GetEmail(request, timeout=5, metadata=credentials)
        return bool(found.email.status == common.MESSAGE_STATUS_DELIVERED)

    async def sms_delivered(self, sms_id: str) -> bool:
        request, credentials = sms_pb2.GetSmsRequest(sms_id=sms_id), tuple(self._credentials.items())
        found = await self._sms.GetSms(request, timeout=5, metadata=credentials)
        return bool(found.sms.status == common.MESSAGE_STATUS_DELIVERED)

    async def confirm_appointment(self) -> tuple[str, str]:
        appointment = {
            "patient_name": self._patient["name"],
            "professional": "Dra. Beatriz Lima",
            "clinic": "TopSmile Pinheiros",
            "address": "Rua dos Pinheiros, 100, São Paulo",
            "start_time": "2030-03-14T17:30:00Z",
            "end_time": "2030-03-14T18:15:00Z",
        }
        url = f"{self._system.gateway}/v1/appointments/{self._appointment}/confirmation"
        legs = await self._ask("POST", url, {"patient": self._patient, "appointment": appointment})
        return legs["email"]["email_id"], legs["sms"]["sms_id"]

    async def create_payment(self) -> Any:
        body = {
            "amount": {"amount_minor": 15000, "currency": "BRL"},
            "appointment_id": self._appointment,
            "patient_id": f"pat_{self._run}",
            "description": "Limpeza",
            "payer": self._patient,
        }
        return (await self._ask("POST", f"{self._system.gateway}/v1/payments", body))["payment"]

    async def pay(self, payment_id: str) -> None:
        await self._ask("POST", f"{self._system.sandbox}/_sandbox/payments/{payment_id}/pay")

    async def paid(self, payment_id: str) -> bool:
        answer = await self._ask("GET", f"{self._system.gateway}/v1/payments/{payment_id}")
        return bool(answer["payment"]["status"] == "PAYMENT_STATUS_SUCCEEDED")

    async def _received(self, provider: str) -> list[Any]:
        url = f"{self._system.sandbox}/_sandbox/ledger?provider={provider}&limit=50"
        entries = (await self._ask("GET", url))["entries"]
        return [entry["request"] for entry in entries if entry["method"] == "POST" and entry["outcome"] == "accepted"]

    async def receipt_mailed(self) -> str | None:
        for mail in await self._received("sendgrid"):
            person = mail["personalizations"][0]
            ours = person["to"][0]["email"] == self._patient["email"]
            if ours and "Recibo" in (person.get("subject") or mail.get("subject") or ""):
                return str(mail["custom_args"]["email_id"])
        return None

    async def receipt_texted(self, but: str) -> str | None:
        for text in await self._received("twilio"):
            sms_id = parse_qs(urlsplit(text.get("StatusCallback", "")).query).get("sms_id", [""])[0]
            if text["To"] == self._patient["phone"] and sms_id != but:
                return str(sms_id)
        return None


async def play(system: System, demo: Demo) -> None:
    async with (
        aiohttp.ClientSession() as http,
        system.channel("email") as to_email,
        system.channel("sms") as to_sms,
    ):
        clinic = Clinic(system, http, email_pb2_grpc.EmailServiceStub(to_email), sms_pb2_grpc.SmsServiceStub(to_sms))
        email_id, sms_id = await clinic.confirm_appointment()
        demo.tell(f"confirmation accepted: {email_id}, {sms_id}")
        await until("the confirmation's mail is delivered", lambda: clinic.email_delivered(email_id))
        await until("the confirmation's text is delivered", lambda: clinic.sms_delivered(sms_id))
        demo.tell("confirmation delivered by email and by text")

        payment = await clinic.create_payment()
        demo.tell(f"payment {payment['payment_id']} is {payment['status'].removeprefix('PAYMENT_STATUS_')}: R$ 150,00")
        await clinic.pay(payment["payment_id"])
        demo.tell("paid on the sandbox's page; Stripe's webhook is on its way")
        await until("the payment succeeds", lambda: clinic.paid(payment["payment_id"]))
        demo.tell("the webhook has arrived: payment SUCCEEDED")

        receipt = await until("the receipt is mailed", clinic.receipt_mailed)
        await until("the receipt's mail is delivered", lambda: clinic.email_delivered(receipt))
        demo.tell(f"receipt delivered by email: {receipt}")
        text = await until("the receipt is texted", lambda: clinic.receipt_texted(sms_id))
        await until("the receipt's text is delivered", lambda: clinic.sms_delivered(text))
        demo.tell(f"receipt delivered by text: {text}")


@contextmanager
def at_hand(demo: Demo) -> Iterator[System]:
    """Yield the running system, or start one for the time of the demo."""
    if found := running(FOLDER):
        yield found
        return
    folder = FOLDER / "demo"
    system = System(complete(harmless(merged(os.environ, None)), folder.absolute(), free_ports=True), folder)
    system.start()
    try:
        for name in system.waiting():
            demo.tell(f"{name} is up")
        yield system
    finally:
        system.stop()


def harmless(settings: dict[str, str]) -> dict[str, str]:
    """Return the environment without real keys and the addresses of other systems."""
    keys = {name for key, base, stand_ins in PROVIDERS.values() for name in (key, base, *stand_ins)}
    real = {*keys, *(f"{key}_FILE" for key in keys), "TWILIO_API_KEY_SID", "TWILIO_API_KEY_SECRET"}
    elsewhere = ("_LISTEN", "_TARGET", "_OPERATIONS", "_DATABASE_URL", "_DATABASE", "PUBLIC_URL")
    return {name: value for name, value in settings.items() if name not in real and not name.endswith(elsewhere)}


def perform(stage: Callable[[Demo], AbstractContextManager[System]], logs: str) -> int:
    """Play on the stage, and say in one line how it went; the result is the exit code."""
    demo = Demo()
    try:
        with stage(demo) as system:
            demo.tell(f"playing against {system.gateway}, page {system.sandbox}/")
            asyncio.run(play(system, demo))
    except PROBLEMS as problem:
        print(f"demo failed: {problem}; see {logs}")
        return 1
    print("demo ok: payment SUCCEEDED, email DELIVERED, sms DELIVERED")
    return 0


if __name__ == "__main__":
    sys.exit(perform(at_hand, f"{FOLDER}/demo/log"))

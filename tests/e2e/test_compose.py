"""The containers of docker-compose.yml, killed in turn: COMPOSE='docker compose' pytest tests/e2e/test_compose.py"""

import asyncio
import os
import secrets
import shlex
import subprocess
from collections import Counter
from collections.abc import Iterator
from typing import Any

import aiohttp
import grpc
import pytest

from launch.demo import Clinic, Demo, DemoError, play
from launch.settings import listen
from launch.system import ROOT, System
from launch.up import PORTS, REPLICAS, addresses, clinic, lacking, wait, write_certificates
from tests.e2e.whole import eventually
from tests.processes import BARE
from topsmile.email.v1 import email_pb2_grpc
from topsmile.sms.v1 import sms_pb2, sms_pb2_grpc

COMPOSE = shlex.split(os.environ.get("COMPOSE", ""))
#: Seconds: what a caller who repeats its call puts up with.
PATIENCE = 60.0
#: A text whose sender was killed in the act is sent again only after Twilio's list has not shown it for a minute.
SURE = 180.0

pytestmark = pytest.mark.skipif(not COMPOSE, reason="COMPOSE says with what to start containers; it is not set")


class Containers(System):
    def __init__(self, profile: str) -> None:
        self._profile = profile
        ports = {f"{name}_PORT": listen(0, free=True).split(":")[1] for name in (*PORTS, *REPLICAS)}
        self._env = {**BARE, **lacking({}), **ports, "COMPOSE_PROJECT_NAME": f"topsmile-{secrets.token_hex(4)}"}
        settings = {**addresses(self._env, profile), **clinic(), "CLINIC_TOKEN": self._env["CLINIC_TOKEN"]}
        super().__init__(settings, ROOT / "var")
        self.credentials = {"authorization": f"Bearer {settings['CLINIC_TOKEN']}"}

    def compose(self, *arguments: str) -> None:
        subprocess.run([*COMPOSE, "--profile", self._profile, *arguments], cwd=ROOT, env=self._env, check=True)

    async def serving(self) -> None:
        await wait(self, Demo())


@pytest.fixture
def containers(request: pytest.FixtureRequest) -> Iterator[Containers]:
    started = Containers(request.param)
    try:
        write_certificates()
        started.compose("up", "-d", "--build")
        yield started
    finally:
        started.compose("down", "--volumes", "-t", "3")


class Caller:
    """Repeats each call with its key, at one replica after the other, until it is answered."""

    def __init__(self, containers: Containers) -> None:
        self._containers = containers
        self.refusals: Counter[str] = Counter()
        self.payments: dict[str, str] = {}
        self.texts: dict[str, str] = {}

    async def go_on(self, name: str, over: asyncio.Event) -> None:
        number = 0
        while not over.is_set():
            key = f"{name}-{number}"
            self.payments[key] = await self.insist(self.pay, key)
            self.texts[key] = await self.insist(self.text, key)
            number += 1
            await asyncio.sleep(0.5)  # together they stay below the ten texts a second of the sms service

    async def insist(self, call: Any, key: str) -> str:
        async with asyncio.timeout(PATIENCE):
            replica = 0
            while True:
                try:
                    return str(await call(key, "_2" if replica % 2 else ""))
                except (aiohttp.ClientError, TimeoutError, grpc.aio.AioRpcError) as error:
                    self.refusals[refusal(error)] += 1
                replica += 1
                await asyncio.sleep(0.2)

    async def pay(self, key: str, replica: str) -> str:
        url = f"http://{self._containers.settings[f'GATEWAY{replica}_LISTEN']}/v1/payments"
        body = {"amount": {"amount_minor": 1000, "currency": "BRL"}, "appointment_id": key, "patient_id": "p"}
        async with (
            aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(10), raise_for_status=True) as http,
            http.post(url, json=body, headers={**self._containers.credentials, "Idempotency-Key": key}) as answer,
        ):
            return str((await answer.json())["payment"]["payment_id"])

    async def text(self, key: str, replica: str) -> str:
        message = sms_pb2.SendSmsRequest(idempotency_key=key, recipient="+5511912345678", body=f"Key {key}")
        async with self._containers.channel(f"SMS{replica}") as channel:
            send = sms_pb2_grpc.SmsServiceStub(channel).SendSms
            answer = await send(message, timeout=10, metadata=tuple(self._containers.credentials.items()))
        return str(answer.sms.sms_id)


def refusal(error: Exception) -> str:
    if isinstance(error, grpc.aio.AioRpcError):
        return str(error.code().name)
    return str(getattr(error, "status", type(error).__name__))


async def texted(containers: Containers) -> Counter[str]:
    """How often each of the callers' texts was accepted by Twilio."""
    found: Counter[str] = Counter()
    url, since = f"{containers.sandbox}/_sandbox/ledger?provider=twilio&limit=1000", 0
    async with aiohttp.ClientSession() as http:
        while True:
            async with http.get(f"{url}&since={since}") as answer:
                entries = (await answer.json())["entries"]
            if not entries:
                return found
            since = entries[-1]["number"]
            taken = [entry["request"] for entry in entries if entry["outcome"] == "accepted"]
            found.update(request["Body"] for request in taken if request.get("Body", "").startswith("Key c"))


@pytest.mark.parametrize("containers", ["sqlite"], indirect=True)
async def test_a_webhook_is_taken_while_its_service_is_away_and_delivered_once_it_is_back(
    containers: Containers,
) -> None:
    await containers.serving()
    async with (
        aiohttp.ClientSession() as http,
        containers.channel("email") as email,
        containers.channel("sms") as sms,
    ):
        patient = Clinic(containers, http, email_pb2_grpc.EmailServiceStub(email), sms_pb2_grpc.SmsServiceStub(sms))
        payment = (await patient.create_payment())["payment_id"]
        containers.compose("kill", "payments")
        await patient.pay(payment)

        async def taken() -> bool:
            async with http.get(f"{containers.sandbox}/_sandbox/webhooks") as answer:
                sent = [hook for hook in (await answer.json())["webhooks"] if "succeeded" in hook["subject"]]
            return bool(sent) and all(hook["state"] == "delivered" for hook in sent)

        async def paid() -> bool:
            try:
                return await patient.paid(payment)
            except DemoError:  # the gateway says 503 until the service is back
                return False

        await eventually(taken)
        assert not await paid()

        containers.compose("start", "payments")
        await eventually(paid, PATIENCE)
        receipt = await eventually(patient.receipt_mailed, PATIENCE)
        await eventually(lambda: patient.email_delivered(receipt), PATIENCE)


@pytest.mark.parametrize("containers", ["postgres"], indirect=True)
async def test_whichever_replica_is_killed_a_repeated_call_succeeds_and_no_text_is_sent_twice(
    containers: Containers,
) -> None:
    await containers.serving()
    await play(containers, Demo())
    callers = [Caller(containers) for _ in range(4)]
    over = asyncio.Event()
    load = [asyncio.create_task(caller.go_on(f"c{n}", over)) for n, caller in enumerate(callers)]
    for killed in (f"{name}-{number}" for number in (1, 2) for name in ("payments", "email", "sms", "gateway")):
        await asyncio.sleep(2)
        await asyncio.to_thread(containers.compose, "kill", killed)
        await asyncio.sleep(2)
        await asyncio.to_thread(containers.compose, "start", killed)
        await containers.serving()
    over.set()
    await asyncio.gather(*load)

    payments = {key: payment for caller in callers for key, payment in caller.payments.items()}
    texts = {key: text for caller in callers for key, text in caller.texts.items()}
    print(len(payments), "payments,", len(texts), "texts, repeated for", *(dict(c.refusals) for c in callers))  # noqa: T201
    again = callers[0]
    assert {key: await again.insist(again.pay, key) for key in payments} == payments
    assert {key: await again.insist(again.text, key) for key in texts} == texts

    async def all_sent() -> bool:
        return set(await texted(containers)) >= {f"Key {key}" for key in texts}

    await eventually(all_sent, SURE)
    assert await texted(containers) == {f"Key {key}": 1 for key in texts}

"""A sandbox that really listens, somebody who takes its webhooks, and a client to speak to it."""

import base64
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp

from sandbox.app import running
from sandbox.settings import Settings
from tests.fakes.webhook_receiver import WebhookReceiver, webhook_receiver

ACCOUNT = "AC" + "0" * 32
STRIPE_SECRET, TWILIO_TOKEN = "whsec_test", "twilio-token"
BASIC = "Basic " + base64.b64encode(f"{ACCOUNT}:{TWILIO_TOKEN}".encode()).decode()


@dataclass(frozen=True)
class Reply:
    status: int
    headers: Any
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


@dataclass
class Bench:
    url: str
    receiver: WebhookReceiver
    http: aiohttp.ClientSession

    async def ask(self, method: str, path: str, **more: Any) -> Reply:
        async with self.http.request(method, self.url + path, **more) as answer:
            return Reply(answer.status, answer.headers, await answer.read())

    async def stripe(
        self, method: str, path: str, key: str | None = None, api_key: str = "sk_test_1", **form: Any
    ) -> Reply:
        headers = {"Authorization": f"Bearer {api_key}"} | ({"Idempotency-Key": key} if key else {})
        where = "params" if method == "GET" else "data"
        return await self.ask(method, path, headers=headers, **{where: {name: str(form[name]) for name in form}})

    async def send_mail(self, mail: dict[str, Any], api_key: str = "SG.test") -> Reply:
        return await self.ask("POST", "/v3/mail/send", json=mail, headers={"Authorization": f"Bearer {api_key}"})

    async def send_text(self, authorization: str = BASIC, **form: str) -> Reply:
        path = f"/2010-04-01/Accounts/{ACCOUNT}/Messages.json"
        return await self.ask("POST", path, data=text(**form), headers={"Authorization": authorization})

    async def texts(self, query: str = "") -> Reply:
        path = f"/2010-04-01/Accounts/{ACCOUNT}/Messages.json{query}"
        return await self.ask("GET", path, headers={"Authorization": BASIC})

    async def ledger(self) -> list[dict[str, Any]]:
        entries: list[dict[str, Any]] = (await self.ask("GET", "/_sandbox/ledger")).json["entries"]
        return entries

    async def fault(self, **fault: Any) -> Reply:
        return await self.ask("POST", "/_sandbox/faults", json=fault)


def text(**changes: str) -> dict[str, str]:
    return {"To": "+5511900000000", "From": "+15005550006", "Body": "Olá", **changes}


def mail(**changes: Any) -> dict[str, Any]:
    return {
        "from": {"email": "clinica@example.com"},
        "personalizations": [{"to": [{"email": "ana@example.com"}]}],
        "subject": "Lembrete",
        "content": [{"type": "text/plain", "value": "Amanhã"}, {"type": "text/html", "value": "<p>Amanhã</p>"}],
        "custom_args": {"email_id": "eml_1"},
        **changes,
    }


@asynccontextmanager
async def sandbox_bench(database: Path) -> AsyncIterator[Bench]:
    async with webhook_receiver() as receiver, aiohttp.ClientSession() as http:
        settings = Settings(
            listen="127.0.0.1:0",
            database=database,
            webhook_target=receiver.url,
            stripe_webhook_secret=STRIPE_SECRET,
            twilio_auth_tokens=(TWILIO_TOKEN,),
        )
        async with running(settings) as url:
            yield Bench(url, receiver, http)

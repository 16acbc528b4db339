"""
The second half of the evidence: what the providers saw, what the services say, and what is left in the queues.

Everything is read by the same doors that anybody has: the sandbox's ledger and outbox, the contracts' Get calls, SQL.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any
from urllib.parse import parse_qs, urlsplit

import aiohttp
import grpc

from chaos.database import PROCESSES
from chaos.operations import Operation
from chaos.system import System
from topsmile.common.v1 import common_pb2 as common
from topsmile.email.v1 import email_pb2, email_pb2_grpc
from topsmile.payments.v1 import payments_pb2, payments_pb2_grpc
from topsmile.sms.v1 import sms_pb2, sms_pb2_grpc

LEFT = """SELECT queue, id, state, note, claims, attempted, failures, due_at, now_ms() AS now FROM job
    WHERE state NOT IN ('done', 'cancelled')"""


@dataclass(frozen=True)
class Post:
    """A mail or a text that its provider accepted; `at` is in epoch seconds."""

    provider: str
    number: int
    at: float
    object_id: str
    #: Whose it is: email_id or sms_id.
    message_id: str
    #: The claim it was sent under.
    attempt: int
    recipient: str


@dataclass(frozen=True)
class Intent:
    id: str
    status: str
    payment_id: str
    caller_key: str


@dataclass(frozen=True)
class Webhook:
    """What a provider owed us: told means that it was answered with 2xx, which is a promise."""

    provider: str
    subject: str
    object_id: str
    #: The payment_id, email_id or sms_id it is about.
    about: str
    state: str
    told_at: float | None


@dataclass(frozen=True)
class RecordStatus:
    """The status of a payment, mail or text in its service; NOT_FOUND where there is none."""

    status: str
    due_at: float = 0.0
    reason: str = ""


@dataclass(frozen=True)
class LeftJob:
    process: str
    queue: str
    id: str
    state: str
    note: str
    claims: int
    attempted: int
    #: Seconds until it is due; negative when it has been for that long.
    due_in: float


@dataclass(frozen=True)
class Freeze:
    name: str
    began: float
    ended: float


@dataclass
class Evidence:
    operations: Sequence[Operation] = ()
    posts: Sequence[Post] = ()
    intents: Sequence[Intent] = ()
    webhooks: Sequence[Webhook] = ()
    payments: Mapping[str, RecordStatus] = field(default_factory=dict)
    emails: Mapping[str, RecordStatus] = field(default_factory=dict)
    texts: Mapping[str, RecordStatus] = field(default_factory=dict)
    jobs: Sequence[LeftJob] = ()
    freezes: Sequence[Freeze] = ()
    #: (job, claim) → the processes whose log tells of it.
    claims: Mapping[tuple[str, int], frozenset[str]] = field(default_factory=dict)
    #: When the services' waiting for a provider's word was cut short (epoch seconds); 0: never.
    waited_out_at: float = 0.0


async def gather(system: System, operations: Sequence[Operation], events: Sequence[Mapping[str, Any]]) -> Evidence:
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(60)) as http:
        posts = [*await mails(http, system.sandbox), *await texts(http, system.sandbox)]
        intents = await intents_of(http, system.sandbox)
        webhooks = await webhooks_of(http, system.sandbox)
    known_ids = {
        service: {ids[service] for o in operations for ids in o.returned if service in ids} for service in PROCESSES
    }
    payment_ids = known_ids["payments"] | {intent.payment_id for intent in intents}
    async with asking(system) as ask:
        return Evidence(
            operations=operations,
            posts=posts,
            intents=intents,
            webhooks=webhooks,
            payments={id: await ask.payment(id) for id in sorted(payment_ids)},
            emails={id: await ask.email(id) for id in sorted(known_ids["email"] | ids_of(posts, "sendgrid"))},
            texts={id: await ask.text(id) for id in sorted(known_ids["sms"] | ids_of(posts, "twilio"))},
            jobs=await left_jobs(system),
            freezes=[Freeze(str(e["target"]), e["began"], e["ended"]) for e in events if e["what"] == "freeze"],
            claims=logged_claims(system),
        )


def ids_of(posts: Sequence[Post], provider: str) -> set[str]:
    return {post.message_id for post in posts if post.provider == provider}


async def ledger(http: aiohttp.ClientSession, sandbox: str, provider: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    while True:
        since = found[-1]["number"] if found else 0
        async with http.get(f"{sandbox}/_sandbox/ledger?provider={provider}&since={since}&limit=1000") as answer:
            entries = (await answer.json())["entries"]
        if not entries:
            return found
        found += entries


def accepted(entries: Sequence[Mapping[str, Any]], path: str) -> list[Mapping[str, Any]]:
    return [e for e in entries if e["method"] == "POST" and e["path"].endswith(path) and e["outcome"] == "accepted"]


async def mails(http: aiohttp.ClientSession, sandbox: str) -> list[Post]:
    found = []
    for entry in accepted(await ledger(http, sandbox, "sendgrid"), "/mail/send"):
        mail = entry["request"]
        person = mail["personalizations"][0]
        about = {**(mail.get("custom_args") or {}), **(person.get("custom_args") or {})}
        to = person["to"][0]["email"]
        found.append(_post("sendgrid", entry, about["email_id"], int(about["attempt"]), to))
    return found


async def texts(http: aiohttp.ClientSession, sandbox: str) -> list[Post]:
    found = []
    for entry in accepted(await ledger(http, sandbox, "twilio"), "/Messages.json"):
        form = entry["request"]
        query = parse_qs(urlsplit(form["StatusCallback"]).query)
        found.append(_post("twilio", entry, query["sms_id"][0], int(query["attempt"][0]), form["To"]))
    return found


def _post(provider: str, entry: Mapping[str, Any], message_id: str, attempt: int, recipient: str) -> Post:
    at = datetime.fromisoformat(entry["at"]).timestamp()
    return Post(provider, entry["number"], at, entry["object_id"], message_id, attempt, recipient)


async def intents_of(http: aiohttp.ClientSession, sandbox: str) -> list[Intent]:
    found: list[Intent] = []
    headers = {"Authorization": "Bearer sk_test_judge"}
    while True:
        after = f"&starting_after={found[-1].id}" if found else ""
        async with http.get(f"{sandbox}/v1/payment_intents?limit=100{after}", headers=headers) as answer:
            page = await answer.json()
        for intent in page["data"]:
            about = intent["metadata"]
            key = about.get("caller_key", "")
            found.append(Intent(intent["id"], intent["status"], about.get("topsmile_payment_id", ""), key))
        if not page["has_more"]:
            return found


async def webhooks_of(http: aiohttp.ClientSession, sandbox: str) -> list[Webhook]:
    async with http.get(f"{sandbox}/_sandbox/webhooks?limit=1000000") as answer:
        return [_webhook(record) for record in (await answer.json())["webhooks"]]


def _webhook(record: Mapping[str, Any]) -> Webhook:
    taken = [attempt["at"] / 1000 for attempt in record["attempts"] if attempt["status"] and attempt["status"] < 300]
    return Webhook(
        provider=record["provider"],
        subject=record["subject"],
        object_id=record["object_id"],
        about=about_of(record),
        state=record["state"],
        told_at=min(taken) if taken else None,
    )


def about_of(record: Mapping[str, Any]) -> str:
    if record["provider"] == "twilio":
        return str(parse_qs(urlsplit(record["url"]).query).get("sms_id", [""])[0])
    body = json.loads(record["body"])
    if record["provider"] == "sendgrid":
        return str(body[0].get("email_id", ""))
    return str((body["data"]["object"].get("metadata") or {}).get("topsmile_payment_id", ""))


async def left_jobs(system: System) -> list[LeftJob]:
    found = []
    for process in PROCESSES:
        for row in await system.stores.query(process, LEFT):
            due_in = (row["due_at"] - row["now"]) / 1000
            job = LeftJob(
                process, row["queue"], row["id"], row["state"], row["note"], row["claims"], row["attempted"], due_in
            )
            found.append(job)
    return found


def logged_claims(system: System) -> dict[tuple[str, int], frozenset[str]]:
    """Return the processes whose logs name each claim of each job."""
    found: dict[tuple[str, int], set[str]] = {}
    for name in system.names:
        for line in logged(system, name):
            if '"event":"job.' in line:
                try:
                    entry = json.loads(line)
                    # A line leaves the first claim out.
                    found.setdefault((entry["job"], int(entry.get("claims", 1))), set()).add(name)
                except (ValueError, KeyError, TypeError):
                    continue  # the last line of a killed process
    return {claim: frozenset(names) for claim, names in found.items()}


def logged(system: System, name: str) -> list[str]:
    """What a process has written, the oldest file first."""
    files = sorted((system.folder / "log").glob(f"{name}.log*"), reverse=True)
    return [line for file in files for line in file.read_text(errors="replace").splitlines()]


class Asking:
    """The services' own answers, asked for until they come."""

    def __init__(self, stubs: Mapping[str, Any]) -> None:
        self._stubs = stubs

    async def payment(self, id: str) -> RecordStatus:
        response = await patient(self._stubs["payments"].GetPayment, payments_pb2.GetPaymentRequest(payment_id=id))
        if response is None:
            return RecordStatus("NOT_FOUND")
        return RecordStatus(payments_pb2.PaymentStatus.Name(response.payment.status).removeprefix("PAYMENT_STATUS_"))

    async def email(self, id: str) -> RecordStatus:
        response = await patient(self._stubs["email"].GetEmail, email_pb2.GetEmailRequest(email_id=id))
        if response is None:
            return RecordStatus("NOT_FOUND")
        status = common.MessageStatus.Name(response.email.status).removeprefix("MESSAGE_STATUS_")
        return RecordStatus(
            status, response.email.scheduled_time.ToMilliseconds() / 1000, response.email.failure_reason
        )

    async def text(self, id: str) -> RecordStatus:
        response = await patient(self._stubs["sms"].GetSms, sms_pb2.GetSmsRequest(sms_id=id))
        if response is None:
            return RecordStatus("NOT_FOUND")
        status = common.MessageStatus.Name(response.sms.status).removeprefix("MESSAGE_STATUS_")
        return RecordStatus(status, response.sms.scheduled_time.ToMilliseconds() / 1000, response.sms.failure_reason)


async def patient(method: Any, request: Any) -> Any:
    """None: there is no such thing. Raises what is no answer after some tries."""
    for attempt in range(20):
        try:
            return await method(request, timeout=10)
        except grpc.aio.AioRpcError as error:
            if error.code() is grpc.StatusCode.NOT_FOUND:
                return None
            if attempt == 19:
                raise
            await asyncio.sleep(0.5)
    return None


@asynccontextmanager
async def asking(system: System) -> AsyncIterator[Asking]:
    options = (("grpc.enable_http_proxy", 0), ("grpc.max_reconnect_backoff_ms", 1000))
    async with (
        grpc.aio.insecure_channel(system.target("payments"), options=options) as payments,
        grpc.aio.insecure_channel(system.target("email"), options=options) as email,
        grpc.aio.insecure_channel(system.target("sms"), options=options) as sms,
    ):
        yield Asking(
            {
                "payments": payments_pb2_grpc.PaymentServiceStub(payments),
                "email": email_pb2_grpc.EmailServiceStub(email),
                "sms": sms_pb2_grpc.SmsServiceStub(sms),
            }
        )

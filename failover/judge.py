"""
What callers were response against what the services say, and both against what the providers received.

Everything has a recipient of its own, so that whatever reached a provider is counted without asking the services.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import aiohttp

from failover.cluster import Cluster
from failover.journal import Call, Journal, Refused
from failover.load import Callers, ask
from failover.system import System
from topsmile.common.v1 import common_pb2 as common
from topsmile.email.v1 import email_pb2
from topsmile.sms.v1 import sms_pb2

#: Seconds for what was acknowledged to reach its end: longer than a lease and every back-off that a run may cause.
SETTLED_WITHIN = 240.0
PAGE = 1000


@dataclass
class Verdict:
    #: Acknowledged, and the service does not know it, or it never reached the provider.
    lost: list[str] = field(default_factory=list)
    #: Reached the provider twice.
    doubled: list[str] = field(default_factory=list)
    #: Known, but not at its end.
    stuck: list[str] = field(default_factory=list)
    #: Acknowledgements that were looked into.
    judged: int = 0

    @property
    def clean(self) -> bool:
        return not (self.lost or self.doubled or self.stuck)


@dataclass
class Received:
    """What the providers accepted: texts by number, mails by address, PaymentIntents by description."""

    texts: Counter[str] = field(default_factory=Counter)
    mails: Counter[str] = field(default_factory=Counter)
    intents: dict[str, set[str]] = field(default_factory=dict)


class Judge:
    def __init__(self, cluster: Cluster, system: System, callers: Callers, journal: Journal) -> None:
        self._cluster = cluster
        self._system = system
        self._callers = callers
        self._journal = journal

    async def settled(self) -> Verdict:
        """Judge again and again until all is well, or the time for that is over."""
        until = time.monotonic() + SETTLED_WITHIN
        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(10.0)) as http:
            while True:
                # A webhook that met several outages is tried again in ten minutes or an hour. This hurries only those
                # that were refused: one that was taken and then lost is not sent again, and leaves its message short
                # of its end.
                await http.post(f"{self._system.sandbox}/_sandbox/webhooks/flush")
                verdict = await self._judge(http)
                if verdict.clean or verdict.doubled or time.monotonic() > until:
                    return verdict
                await asyncio.sleep(2.0)

    async def _judge(self, http: aiohttp.ClientSession) -> Verdict:
        verdict = Verdict()
        received = await self._received(http)
        events = await self._events()
        for call in self._journal.calls:
            self._count(call, received, verdict)
            if not call.id:
                continue
            verdict.judged += 1
            if call.kind == "webhook":
                status = events.get(call.id, "NOT_FOUND")
            else:
                status = await self._status(http, call)
            if status == "NOT_FOUND":
                verdict.lost.append(f"{call.key}: {call.id} was acknowledged and is not known")
            elif status not in ("DELIVERED", "SUCCEEDED", "IGNORED_FOREIGN"):
                verdict.stuck.append(f"{call.key}: {call.id} is {status or 'waiting'}")
        return verdict

    def _count(self, call: Call, received: Received, verdict: Verdict) -> None:
        """Everything at most once; what was acknowledged, and a payment's two notices, exactly once."""
        reached = {}
        if call.kind in ("sms", "payment"):
            reached["texts"] = received.texts[call.phone]
        if call.kind in ("email", "payment"):
            reached["mails"] = received.mails[call.address]
        if call.kind == "payment":
            reached["payment intents"] = len(received.intents.get(call.key, ()))
        for what, times in reached.items():
            if times > 1:
                verdict.doubled.append(f"{call.key}: {times} {what} for {call.id or 'what was not acknowledged'}")
            if times < 1 and call.id:
                verdict.lost.append(f"{call.key}: no {what} for {call.id}")

    async def _status(self, http: aiohttp.ClientSession, call: Call) -> str:
        try:
            if call.kind == "sms":
                text = await ask(self._callers.sms.GetSms(sms_pb2.GetSmsRequest(sms_id=call.id), timeout=10))
                return common.MessageStatus.Name(text.sms.status).removeprefix("MESSAGE_STATUS_")
            if call.kind == "email":
                mail = await ask(self._callers.email.GetEmail(email_pb2.GetEmailRequest(email_id=call.id), timeout=10))
                return common.MessageStatus.Name(mail.email.status).removeprefix("MESSAGE_STATUS_")
        except Refused as refusal:
            return refusal.reason
        async with http.get(f"{self._system.gateways[0]}/v1/payments/{call.id}") as answer:
            response = await answer.json()
        if answer.status != 200:
            return "NOT_FOUND" if answer.status == 404 else str(answer.status)
        return str(response["payment"]["status"]).removeprefix("PAYMENT_STATUS_")

    async def _events(self) -> dict[str, str]:
        """The outcomes of the webhooks that the gateway's database holds."""
        leader = await self._cluster.whole(120.0)
        sql = "SELECT event_id, outcome FROM inbox WHERE event_id LIKE 'evt_failover-%'"
        lines = self._cluster.psql(leader, "gateway", sql).splitlines()
        return dict(line.split("|", 1) for line in lines)

    async def _received(self, http: aiohttp.ClientSession) -> Received:
        found, since = Received(), 0
        while True:
            url = f"{self._system.sandbox}/_sandbox/ledger?since={since}&limit={PAGE}"
            async with http.get(url) as answer:
                entries = (await answer.json())["entries"]
            for entry in entries:
                if entry["method"] == "POST" and entry["outcome"] == "accepted":
                    _note(found, entry)
            if len(entries) < PAGE:
                return found
            since = entries[-1]["number"]


def _note(found: Received, entry: Any) -> None:
    request = entry["request"]
    match entry["provider"]:
        case "twilio":
            found.texts[request["To"]] += 1
        case "sendgrid":
            found.mails.update(to["email"] for person in request["personalizations"] for to in person["to"])
        case "stripe" if entry["path"] == "/v1/payment_intents":
            found.intents.setdefault(str(request.get("description")), set()).add(entry["object_id"])

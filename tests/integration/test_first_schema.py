"""
Databases that the first schema's code wrote start on the present code.

`tests/data/first_*.json` hold what that code stored: sent, canceled and refused messages, a reminder that waits, one
with a lost answer, one that a pause holds back, and a dead letter.
"""

from __future__ import annotations

import base64
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, cast

import pytest

from services.chassis.database import migrations
from services.chassis.database.postgres import Postgres
from services.chassis.database.sqlite import SQLite
from services.chassis.database.transactions import Database, rows
from services.chassis.queue import operations
from services.email import __main__ as email_service
from services.email.settings import Settings as EmailSettings
from services.messaging.channel import Channel
from services.sms import __main__ as sms_service
from services.sms.settings import Settings as SmsSettings
from tests.fakes.gateway import running, until
from tests.fakes.sandbox_bench import TWILIO_TOKEN, Bench, sandbox_bench
from topsmile.common.v1 import common_pb2 as common

DATA = Path(__file__).parent.parent / "data"
#: Later than this are the times of the reminders, which stay.
FAR = 4_102_444_800_000
MINUTES, HOURS = 60_000, 3_600_000
#: When the reminders are due, a day before their appointments.
REMINDED_AT = 7_232_779_800_000


async def write(database_url: str, name: str) -> dict[str, str]:
    """Write a database as the first code did, just now; return the messages' ids by their keys."""
    stored = json.loads((DATA / f"first_{name}.json").read_text(encoding="utf-8"))
    if database_url.startswith("sqlite"):
        database: Database = await SQLite.open(database_url.removeprefix("sqlite:///"))
    else:
        database = await Postgres.open(database_url)
    try:
        await database.run(migrations.bootstrap)
        await database.run(migrations.apply, list(stored["scripts"].items()))
        (now,) = await database.run(rows, "SELECT now_ms() AS now")
        await database.run(insert, stored["tables"], now["now"] - stored["now"])
    finally:
        await database.close()
    columns, found = stored["tables"][name]["columns"], stored["tables"][name]["rows"]
    key, id = columns.index("idempotency_key"), columns.index(f"{name}_id")
    return {row[key]: row[id] for row in found}


async def insert(tables: dict[str, Any], age: int) -> None:
    for table, content in tables.items():
        names = content["columns"]
        sql = f"INSERT INTO {table} ({', '.join(names)}) VALUES ({', '.join(f':{name}' for name in names)})"
        for row in content["rows"]:
            await rows(sql, **{name: value(name, each, age) for name, each in zip(names, row, strict=True)})


def value(name: str, stored: Any, age: int) -> Any:
    if isinstance(stored, dict):
        return base64.b64decode(stored["base64"])
    if isinstance(stored, int) and name.endswith(("_at", "_since", "_until")) and 0 < stored < FAR:
        return stored + (age * 1000 if name == "free_at" else age)
    return stored


@asynccontextmanager
async def email(database_url: str, bench: Bench) -> AsyncIterator[Channel]:
    settings = EmailSettings.model_validate({
        "listen": "127.0.0.1:0", "database_url": database_url, "sendgrid_api_key": "SG.test",
        "sendgrid_api_base": bench.url, "from_email": "contato@topsmile.example",
    })  # fmt: skip
    async with email_service.assembled(settings) as channel, running([channel.worker]):
        yield channel


@asynccontextmanager
async def sms(database_url: str, bench: Bench) -> AsyncIterator[Channel]:
    settings = SmsSettings.model_validate({
        "listen": "127.0.0.1:0", "database_url": database_url, "twilio_account_sid": "AC" + "0" * 32,
        "twilio_auth_token": TWILIO_TOKEN, "twilio_phone_number": "+15005550006", "twilio_api_base": bench.url,
        "sms_pepper": "a pepper of sixteen", "public_url": "https://clinic.example",
    })  # fmt: skip
    async with sms_service.assembled(settings) as channel, running([channel.worker]):
        yield channel


async def statuses(channel: Channel, ids: dict[str, str]) -> dict[str, str]:
    found = await channel.database.read(rows, "SELECT message_id, status FROM message")
    by_id = {row["message_id"]: row["status"] for row in found}
    assert len(by_id) == len(ids)
    return {key: by_id[id] for key, id in ids.items()}


async def hurry(channel: Channel, condition: Callable[[], Awaitable[bool]], milliseconds: int) -> None:
    channel.database.offset_ms += milliseconds
    channel.worker.wake()
    await until(condition)


async def to_reminder(channel: Channel) -> int:
    (now,) = await channel.database.read(rows, "SELECT now_ms() AS now")
    return REMINDED_AT + MINUTES - int(now["now"])


async def test_first_emails_go_on_and_each_is_sent_once(database_url: str, tmp_path: Path) -> None:
    ids = await write(database_url, "email")
    async with sandbox_bench(tmp_path / "sandbox.db") as bench, email(database_url, bench) as channel:
        at_first = await statuses(channel, ids)
        paused = await channel.database.read(operations.census, "email")
        events = [
            {
                "event": "bounce",
                "timestamp": 1_790_000_000,
                "sg_message_id": f"{sid}.recvd-1",
                "email": "ana@example.com",
            }
            for sid in await provider_ids(channel, ids["sent"])
        ]
        outcomes = await channel.outbox.apply([event_of(each) for each in events])
        assert await channel.database.run(operations.replay, "email", ids["dead"])

        async def handed_over() -> bool:
            return {"unknown", "queued", "dead"} <= await sent_keys(bench, ids)

        await hurry(channel, handed_over, 2 * HOURS)

        async def reminded() -> bool:
            return "reminder" in await sent_keys(bench, ids)

        await hurry(channel, reminded, await to_reminder(channel))
        mails = [entry["request"]["custom_args"]["email_id"] for entry in await bench.ledger()]

    assert at_first == {
        "sent": "SENT", "delivered": "DELIVERED", "bounced": "BOUNCED", "canceled": "CANCELED", "reminder": "SCHEDULED",
        "unknown": "UNKNOWN", "queued": "QUEUED", "dead": "EXPIRED",
    }  # fmt: skip
    assert (paused["queued"], paused["dead"]) == (3, 1)
    assert [result.outcome for result in outcomes] == [common.EVENT_OUTCOME_APPLIED]
    assert sorted(mails) == sorted(ids[key] for key in ("unknown", "queued", "dead", "reminder"))


async def test_first_texts_go_on_and_each_is_sent_once(database_url: str, tmp_path: Path) -> None:
    ids = await write(database_url, "sms")
    async with sandbox_bench(tmp_path / "sandbox.db") as bench, sms(database_url, bench) as channel:
        at_first = await statuses(channel, ids)
        sid = (await provider_ids(channel, ids["undelivered"]))[0]
        late = common.ProviderEvent(event_id="late", body=f"MessageSid={sid}&MessageStatus=delivered".encode())
        outcomes = await channel.outbox.apply([late])
        await channel.database.run(operations.replay, "sms", ids["dead"])
        await channel.database.run(rows, "UPDATE rate_limit SET paused_until = 0")

        async def handed_over() -> bool:
            found = await statuses(channel, ids)
            return {found[key] for key in ("unknown", "queued", "code")} == {"SENT"}

        await hurry(channel, handed_over, 2 * MINUTES)
        after = await statuses(channel, ids)
        dead = await channel.database.read(operations.show, "sms", ids["dead"])

        async def reminded() -> bool:
            return len(await posts(bench)) == 4

        await hurry(channel, reminded, await to_reminder(channel))
        texts = await posts(bench)

    assert at_first == {
        "sent": "SENT", "undelivered": "UNDELIVERED", "reminder": "SCHEDULED", "unknown": "UNKNOWN", "queued": "QUEUED",
        "dead": "EXPIRED", "code": "QUEUED",
    }  # fmt: skip
    assert [result.outcome for result in outcomes] == [common.EVENT_OUTCOME_APPLIED]
    assert after["undelivered"] == "DELIVERED"
    # The first code erased a dead letter's words: there is nothing to send, and it says so.
    assert dead is not None
    assert (dead["state"], dead["note"]) == ("dead", "CONTENT_ERASED")
    assert sum("Seu codigo de verificacao: 493021" in body for body in texts) == 1
    assert sum(body.startswith("Lembrete: ") for body in texts) == 1


@pytest.mark.parametrize(("name", "service"), [("email", email), ("sms", sms)])
async def test_first_database_is_migrated_once(
    database_url: str, tmp_path: Path, name: str, service: Callable[[str, Bench], Any]
) -> None:
    ids = await write(database_url, name)
    async with sandbox_bench(tmp_path / "sandbox.db") as bench:
        for _ in range(2):
            async with service(database_url, bench) as channel:
                assert (await statuses(channel, ids)).keys() == ids.keys()
                left = await channel.database.read(rows, "SELECT id FROM job WHERE queue NOT IN ('email', 'sms')")
                assert not left


def event_of(item: dict[str, Any]) -> common.ProviderEvent:
    return common.ProviderEvent(event_id=item["sg_message_id"], body=json.dumps(item).encode())


async def provider_ids(channel: Channel, id: str) -> list[str]:
    sql = "SELECT provider_message_id FROM message_attempt WHERE message_id = :id"
    return [row["provider_message_id"] for row in await channel.database.read(rows, sql, id=id)]


async def sent_keys(bench: Bench, ids: dict[str, str]) -> set[str]:
    mailed = {entry["request"]["custom_args"]["email_id"] for entry in await bench.ledger()}
    return {key for key, id in ids.items() if id in mailed}


async def posts(bench: Bench) -> list[str]:
    """Return the bodies of the texts that Twilio took."""
    entries = await bench.ledger()
    return [cast("str", entry["request"]["Body"]) for entry in entries if entry["method"] == "POST"]

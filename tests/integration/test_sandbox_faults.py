import asyncio
import json
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from tests.fakes.sandbox_bench import Bench, Reply, mail
from tests.fakes.webhook_receiver import webhook_receiver

ROOT = Path(__file__).parents[2]


async def create(bench: Bench, key: str | None = None) -> Reply:
    return await bench.stripe("POST", "/v1/payment_intents", key, amount=15000, currency="brl")


async def intents(bench: Bench) -> int:
    return len((await bench.stripe("GET", "/v1/payment_intents")).json["data"])


async def test_a_status_refuses_as_often_as_asked_and_nothing_is_done(bench: Bench) -> None:
    await bench.fault(provider="stripe", path="POST /v1/payment_intents", kind="status", status=503, times=2)
    answers = [(await create(bench, "op-1")).status for _ in range(3)]

    assert answers == [503, 503, 200]
    assert await intents(bench) == 1
    assert [entry["outcome"] for entry in await bench.ledger()][:3] == ["faulted", "faulted", "accepted"]


async def test_stripes_500_is_replayed_for_its_key(bench: Bench) -> None:
    await bench.fault(provider="stripe", kind="status", status=500)
    first, again = await create(bench, "op-1"), await create(bench, "op-1")

    assert (first.status, first.json["error"]["type"]) == (500, "api_error")
    assert (again.status, again.headers["Idempotent-Replayed"]) == (500, "true")


@pytest.mark.parametrize(("status", "times"), [(500, 3), (500, 0), (402, 4), (400, 5)])
async def test_stored_refusal_asked_again_while_its_fault_lasts_is_replayed_and_in_the_ledger(
    bench: Bench, status: int, times: int
) -> None:
    await bench.fault(provider="stripe", path="POST /v1", kind="status", status=status, stored=True, times=times)
    answers = [await create(bench, "op-1") for _ in range(3)]
    other = await bench.stripe("POST", "/v1/payment_intents", "op-1", amount=999, currency="brl")

    assert [answer.status for answer in answers] == [status] * 3
    assert [answer.headers.get("Idempotent-Replayed") for answer in answers] == [None, "true", "true"]
    assert len({answer.headers["Original-Request"] for answer in answers}) == 1
    assert (other.status, other.json["error"]["type"]) == (400, "idempotency_error")
    entries = await bench.ledger()
    assert [(entry["status"], entry["outcome"]) for entry in entries[:3]] == [
        (status, "faulted"),
        (status, "replayed"),
        (status, "replayed"),
    ]
    assert len(entries) == 4


@pytest.mark.parametrize(
    ("provider", "header", "where"),
    [
        ("stripe", "Retry-After", "error"),
        ("sendgrid", "X-RateLimit-Reset", "errors"),
        ("twilio", "Retry-After", "code"),
    ],
)
async def test_a_throttle_has_the_providers_own_body_and_headers(
    bench: Bench, provider: str, header: str, where: str
) -> None:
    await bench.fault(provider=provider, kind="throttle", retry_after=7)
    if provider == "stripe":
        answer = await create(bench)
    else:
        answer = await (bench.send_mail(mail()) if provider == "sendgrid" else bench.send_text())

    assert answer.status == 429
    assert header in answer.headers
    assert where in answer.json


async def test_a_code_tells_a_lock_from_a_rate_limit(bench: Bench) -> None:
    await bench.fault(provider="stripe", kind="status", status=429, code="lock_timeout")

    assert (await create(bench)).json["error"]["code"] == "lock_timeout"


async def test_a_reset_before_accepting_does_nothing(bench: Bench) -> None:
    await bench.fault(provider="stripe", kind="reset")
    with pytest.raises((aiohttp.ClientOSError, aiohttp.ServerDisconnectedError)):
        await create(bench)

    assert await intents(bench) == 0


async def test_a_reset_after_accepting_has_done_the_work(bench: Bench) -> None:
    await bench.fault(provider="stripe", kind="reset", after=True)
    with pytest.raises((aiohttp.ClientOSError, aiohttp.ServerDisconnectedError)):
        await create(bench, "op-1")

    assert (await create(bench, "op-1")).headers["Idempotent-Replayed"] == "true"
    assert await intents(bench) == 1


async def test_a_hang_has_done_the_work_and_never_answers(bench: Bench) -> None:
    await bench.fault(provider="stripe", kind="hang_after_accepting", seconds=30)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.4):
            await create(bench)

    assert await intents(bench) == 1


async def test_a_cut_body_promises_its_full_length(bench: Bench) -> None:
    await bench.fault(provider="stripe", kind="truncate")
    with pytest.raises(aiohttp.ClientPayloadError):
        await create(bench)

    assert await intents(bench) == 1


async def test_a_silent_recipient_is_accepted_without_an_answer(bench: Bench) -> None:
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.4):
            await bench.send_text(To="+5511900000091", StatusCallback="http://public.example/status")

    await bench.receiver.wait_for(lambda got: len(got) == 3)


@pytest.mark.parametrize(("kind", "expected"), [("duplicate", 2), ("drop", 0)])
async def test_webhooks_are_doubled_or_lost(bench: Bench, kind: str, expected: int) -> None:
    await bench.fault(provider="stripe", path="payment_intent.created", kind=kind)
    await create(bench)
    await create(bench)
    received = await bench.receiver.wait_for(lambda got: len(got) == expected + 1)

    await asyncio.sleep(0.1)
    assert len(received) == expected + 1


async def test_webhooks_change_places(bench: Bench) -> None:
    await bench.fault(provider="stripe", path="payment_intent.created", kind="reorder", seconds=0.5)
    made = await create(bench)
    await bench.ask("POST", f"/_sandbox/payments/{made.json['id']}/pay")
    received = await bench.receiver.wait_for(lambda got: len(got) == 3)

    assert json.loads(received[-1].body)["type"] == "payment_intent.created"


async def test_faults_are_listed_and_cleared(bench: Bench) -> None:
    await bench.fault(provider="stripe", kind="status", times=0)
    await bench.fault(provider="twilio", kind="reset")
    listed = (await bench.ask("GET", "/_sandbox/faults")).json["faults"]
    await bench.ask("DELETE", "/_sandbox/faults?provider=stripe")

    assert [(fault["provider"], fault["kind"], fault["times"]) for fault in listed] == [
        ("stripe", "status", 0),
        ("twilio", "reset", 1),
    ]
    assert (await create(bench)).status == 200


@pytest.mark.parametrize(
    "fault", [{"kind": "status"}, {"provider": "stripe"}, {"provider": "stripe", "kind": "drop", "x": 1}]
)
async def test_a_fault_that_makes_no_sense_is_refused(bench: Bench, fault: dict[str, Any]) -> None:
    assert (await bench.fault(**fault)).status == 400


async def test_the_ledger_holds_no_credential(bench: Bench) -> None:
    await bench.stripe("GET", "/v1/events", api_key="sk_test_very_secret")
    await bench.send_mail(mail(), "SG.very_secret")
    await bench.send_text("Basic dmVyeTpzZWNyZXQ=")
    entries = await bench.ledger()

    assert [entry["provider"] for entry in entries] == ["stripe", "sendgrid", "twilio"]
    assert "secret" not in json.dumps(entries)
    assert "dmVyeTpzZWNyZXQ" not in json.dumps(entries)


async def test_the_page_shows_everything_and_needs_no_script(bench: Bench) -> None:
    made = await create(bench)
    sent = await bench.send_mail(mail(subject="<b>Lembrete"))
    await bench.send_text(Body="Seu código")
    page = await bench.ask("GET", "/")
    framed = await bench.ask("GET", f"/_sandbox/mails/{sent.headers['X-Message-Id']}/html")
    sheet = await bench.ask("GET", "/static/sandbox.css")

    html = page.body.decode()
    assert (page.status, framed.body, sheet.status) == (200, "<p>Amanhã</p>".encode(), 200)
    assert made.json["id"] in html
    assert "&lt;b&gt;Lembrete" in html
    assert "Seu código" in html
    assert "<script" not in html
    assert "unsafe-inline" not in page.headers["Content-Security-Policy"]
    assert framed.headers["Content-Security-Policy"].startswith("sandbox;")


@asynccontextmanager
async def process(database: Path, target: str) -> AsyncIterator[tuple[str, asyncio.subprocess.Process]]:
    environment = {
        "SANDBOX_LISTEN": "127.0.0.1:0",
        "SANDBOX_DATABASE": str(database),
        "SANDBOX_WEBHOOK_TARGET": target,
        "PATH": "/usr/bin:/bin",
    }
    child = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "sandbox", cwd=ROOT, env=environment, stdout=asyncio.subprocess.PIPE
    )
    assert child.stdout is not None
    try:
        yield json.loads(await child.stdout.readline())["url"], child
    finally:
        if child.returncode is None:
            child.send_signal(signal.SIGTERM)
        await child.wait()


async def test_everything_survives_a_kill(tmp_path: Path) -> None:
    async with webhook_receiver() as receiver, aiohttp.ClientSession() as http:
        receiver.statuses = [503] * 2
        async with process(tmp_path / "sandbox.db", receiver.url) as (url, child):
            bench = Bench(url, receiver, http)
            made = await create(bench, "op-1")
            await bench.fault(provider="twilio", kind="status", times=0)
            keys = (await bench.ask("GET", "/_sandbox/keys")).json
            await receiver.wait_for(lambda got: len(got) == 2)
            child.kill()
        async with process(tmp_path / "sandbox.db", receiver.url) as (url, child):
            bench = Bench(url, receiver, http)
            again = await create(bench, "op-1")
            await receiver.wait_for(lambda got: len(got) == 3)

            assert again.body == made.body
            assert again.headers["Idempotent-Replayed"] == "true"
            assert (await bench.ask("GET", "/_sandbox/keys")).json == keys
            assert (await bench.send_text()).status == 500
            assert [entry["outcome"] for entry in await bench.ledger()] == ["accepted", "replayed", "faulted"]
        assert child.returncode == 0


async def test_a_taken_port_is_said_so(bench: Bench, tmp_path: Path) -> None:
    environment = {"SANDBOX_LISTEN": bench.url.removeprefix("http://"), "SANDBOX_DATABASE": str(tmp_path / "other.db")}
    child = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "sandbox", cwd=ROOT, env=environment, stderr=asyncio.subprocess.PIPE
    )
    _, complaint = await child.communicate()

    assert (child.returncode, b"cannot listen on" in complaint) == (1, True)

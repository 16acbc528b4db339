"""`python -m services.chassis.admin` as an operator runs it, against a real server on both databases."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from services.chassis.rpc.authentication import Authenticator, parse_tokens
from tests.fakes.gateway import until
from tests.integration.test_caller_scopes import entry
from tests.integration.test_queue_admin import WORDS, Process, process
from tests.processes import BARE, ROOT

WHY = ("--reason", "the provider is back")


@pytest.fixture
async def running(database_url: str) -> AsyncIterator[Process]:
    async with process(database_url, working=True) as started:
        yield started


async def run(*arguments: str) -> tuple[int, str, str]:
    """Return the exit code, the output and the errors."""
    ended = await asyncio.create_subprocess_exec(
        sys.executable, "-W", "error", "-m", "services.chassis.admin", *arguments, cwd=ROOT,
        env={**BARE, "PYTHONPATH": f"{ROOT}:{ROOT / 'protos'}", "COLUMNS": "200"},
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    out, err = await asyncio.wait_for(ended.communicate(), 60)
    return ended.returncode or 0, out.decode(), err.decode()


async def rows_of(target: str, *arguments: str) -> list[dict[str, Any]]:
    code, out, err = await run("--target", target, "--json", *arguments)
    assert (code, err) == (0, "")
    return [json.loads(line) for line in out.splitlines()]


async def test_dead_letter_is_found_shown_and_replayed(running: Process) -> None:
    await running.add("eml_1", "eml_2", note="THROTTLED")

    queues = {row["queue"]: row["dead"] for row in await rows_of(running.target, "queues")}
    listed = await rows_of(running.target, "jobs", "post", "--note", "THROTTLED")
    (shown,) = await rows_of(running.target, "show", "post", "eml_1")
    replayed = await rows_of(running.target, "replay", "post", "eml_1", "absent", *WHY)
    await until(lambda: running.handled == ["eml_1"])
    rest = await rows_of(running.target, "replay", "post", "--all", *WHY)
    audit = await rows_of(running.target, "audit", "--of", "post")

    assert queues == {"alone": 0, "post": 2}
    assert [row["job_id"] for row in listed] == ["eml_2", "eml_1"]
    assert (shown["state"], shown["note"], shown["correlation_id"]) == ("JOB_STATE_DEAD", "THROTTLED", "corr-1")
    assert not any(word.decode() in json.dumps(shown) for word in WORDS.split())
    assert replayed == [{"changed": 1, "refusals": [{"reason": "NOT_FOUND", "count": 1}], "next_page_token": ""}]
    assert rest[0]["changed"] == 1
    assert [(row["method"], row["caller"], row["changed"]) for row in audit] == [("ReplayJobs", "local", 1)] * 2


@pytest.mark.parametrize(
    ("steps", "state"),
    [
        ((("park", "--all"),), "parked"),
        ((("park", "a"), ("unpark", "a")), "done"),
        ((("discard", "a"),), "cancelled"),
        ((("park", "a"), ("unpark", "--all"), ("park", "--all")), "done"),
    ],
)
async def test_jobs_are_set_aside_and_ended(running: Process, steps: tuple[tuple[str, str], ...], state: str) -> None:
    await running.add("a")

    for command, what in steps:
        await rows_of(running.target, command, "post", what, *WHY)
        await asyncio.sleep(0.3)

    assert await running.states() == {"a": state}


async def test_queue_is_paused_and_resumed(running: Process) -> None:
    (paused,) = await rows_of(running.target, "pause", "post", "--seconds", "600", "--provider", "second", *WHY)
    (resumed,) = await rows_of(running.target, "resume", "post", *WHY)

    assert [each["pause_reason"] for each in paused["providers"]] == ["", "PAUSED"]
    assert [each["pause_reason"] for each in resumed["providers"]] == ["", ""]


async def test_breaker_is_forced_open_and_released(running: Process) -> None:
    (forced,) = await rows_of(running.target, "breakers", "first", "open", *WHY)
    listed = await rows_of(running.target, "breakers")
    await rows_of(running.target, "breakers", "first", "automatic", *WHY)

    assert (forced["mode"], forced["state"]) == ("BREAKER_MODE_FORCED_OPEN", "BREAKER_STATE_OPEN")
    assert [(row["breaker"], row["reason"]) for row in listed] == [("first", WHY[1]), ("second", "")]
    assert running.breakers[0].state == "HALF_OPEN"


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
async def test_table_has_a_line_for_each_row(running: Process) -> None:
    await running.add(*"abc")

    code, out, _ = await run("--target", running.target, "jobs", "post", "--limit", "2")
    _, single, _ = await run("--target", running.target, "show", "post", "a")

    assert code == 0
    assert [line.split()[:3] for line in out.splitlines()] == [
        ["queue", "job_id", "state"], ["post", "c", "DEAD"], ["post", "b", "DEAD"],
    ]  # fmt: skip
    assert ["state", "DEAD"] in [line.split() for line in single.splitlines()]


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (("jobs", "nothing"), 1, "INVALID_ARGUMENT INVALID_REQUEST: queue: must be one of alone, post"),
        (("show", "post", "absent"), 1, "NOT_FOUND NOT_FOUND"),
        (("replay", "post", "a", "--reason", ""), 1, "reason: is required"),
        (("replay", "post", *WHY), 2, "either ids or --all must be given"),
        (("replay", "post", "a", "--all", *WHY), 2, "either ids or --all must be given"),
        (("breakers", "first"), 2, "mode must be open or automatic"),
        (("token", "clinic", "--scopes", "read,fly"), 2, "must have scopes among"),
        (("token", "no name", "--scopes", "read"), 2, "must be name:scopes:"),
        (("--token-file", "/nowhere", "queues"), 2, "No such file"),
    ],
)
@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
async def test_wrong_call_says_what_must_be(
    running: Process, arguments: tuple[str, ...], code: int, words: str
) -> None:
    ended, out, err = await run("--target", running.target, *arguments)

    assert (ended, out) == (code, "")
    assert words in err
    assert "Traceback" not in err


async def test_unreachable_process_is_exit_code_1() -> None:
    code, _, err = await run("--target", "127.0.0.1:1", "queues")

    assert code == 1
    assert "UNAVAILABLE" in err


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
async def test_token_file_names_the_caller(database_url: str, tmp_path: Path) -> None:
    right, wrong = tmp_path / "right", tmp_path / "wrong"
    right.write_text("ops\n")
    wrong.write_text("clinic\n")
    tokens = f"{entry('ops', 'admin')},{entry('clinic', 'read+send')}"
    async with process(database_url, tokens=tokens) as started:
        command = ("--target", started.target, "--token-file")
        await run(*command, str(right), "pause", "post", *WHY)
        _, audit, _ = await run(*command, str(right), "--json", "audit", "--by", "ops")
        refused = await run(*command, str(wrong), "queues")

    assert json.loads(audit)["caller"] == "ops"
    assert (refused[0], "PERMISSION_DENIED" in refused[2]) == (1, True)


@pytest.mark.parametrize(
    ("name", "scopes"), [("clinic", "read,send"), ("ops", "admin"), ("gw", "read,send,events,forward")]
)
async def test_new_token_is_the_caller_s_under_its_entry(name: str, scopes: str) -> None:
    code, out, _ = await run("--json", "token", name, "--scopes", scopes)
    made = json.loads(out)

    caller = Authenticator(parse_tokens(made["entry"])).authenticate(f"Bearer {made['token']}")

    assert (code, caller.name) == (0, name)
    assert set(scopes.split(",")) <= caller.scopes
    assert made["token"] not in made["entry"]

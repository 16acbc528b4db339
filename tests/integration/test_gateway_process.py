"""The gateway as it is started: what it needs, what it says, how it ends."""

from __future__ import annotations

import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest

from tests.fakes import signing
from tests.processes import BARE, ROOT, process


def settings(folder: Path) -> dict[str, str]:
    return {
        "GATEWAY_LISTEN": "127.0.0.1:0",
        "GATEWAY_OPERATIONS_LISTEN": "127.0.0.1:0",
        "GATEWAY_DATABASE_URL": f"sqlite:///{folder}/gateway.db",
        "STRIPE_WEBHOOK_SECRET": "whsec_1",
        "SENDGRID_WEBHOOK_PUBLIC_KEY": signing.SendGridKey().public,
        "TWILIO_AUTH_TOKEN": "token",
        "PAYMENTS_TARGET": "127.0.0.1:1",
        "EMAIL_TARGET": "127.0.0.1:1",
        "SMS_TARGET": "127.0.0.1:1",
    }


def refusal(told: dict[str, str]) -> str:
    ended = subprocess.run(
        [sys.executable, "-m", "gateway"],
        cwd=ROOT,
        env={**BARE, "PYTHONPATH": f"{ROOT}:{ROOT / 'protos'}", **told},
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert ended.returncode == 2
    return ended.stderr


def test_it_does_not_start_without_webhook_secrets_and_names_all_that_is_missing() -> None:
    said = refusal({"TWILIO_AUTH_TOKEN": " , ", "PUBLIC_URL": "hooks"})
    for name in ("STRIPE_WEBHOOK_SECRET", "SENDGRID_WEBHOOK_PUBLIC_KEY", "TWILIO_AUTH_TOKEN", "PUBLIC_URL"):
        assert f"{name}: " in said


@pytest.mark.parametrize("key", ["x", "AAAA", ",", signing.SendGridKey().public + ",x"])
def test_a_key_that_is_none_is_refused(tmp_path: Path, key: str) -> None:
    assert "SENDGRID_WEBHOOK_PUBLIC_KEY: " in refusal(settings(tmp_path) | {"SENDGRID_WEBHOOK_PUBLIC_KEY": key})


def test_off_loopback_it_needs_tokens(tmp_path: Path) -> None:
    assert "GATEWAY_AUTH_TOKENS" in refusal(settings(tmp_path) | {"GATEWAY_LISTEN": "0.0.0.0:0"})


def test_it_takes_events_while_nothing_else_runs_and_ends_on_sigterm(tmp_path: Path) -> None:
    with process("gateway", settings(tmp_path)) as gateway:
        body = b'{"id":"evt_1","type":"x"}'
        asked = urllib.request.Request(
            f"http://{gateway.listening['http']}/webhooks/stripe",
            body,
            signing.stripe_header(body, "whsec_1", int(time.time())),
        )
        with urllib.request.urlopen(asked, timeout=10) as answer:
            assert answer.status == 200
        with urllib.request.urlopen(f"http://{gateway.listening['operations']}/readyz", timeout=10) as answer:
            assert answer.status == 200
        assert gateway.end() == 0
        assert "whsec_1" not in "".join(gateway.lines)

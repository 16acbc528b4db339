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
        "GATEWAY_ADMIN_LISTEN": "127.0.0.1:0",
        "GATEWAY_DATABASE_URL": f"sqlite:///{folder}/gateway.db",
        "STRIPE_WEBHOOK_SECRET": "whsec_1",
        "SENDGRID_WEBHOOK_PUBLIC_KEY": signing.SendGridKey().public,
        "TWILIO_AUTH_TOKEN": "token",
        "PAYMENTS_TARGET": "127.0.0.1:1",
        "EMAIL_TARGET": "127.0.0.1:1",
        "SMS_TARGET": "127.0.0.1:1",
    }


def refusal(variables: dict[str, str]) -> str:
    ended = subprocess.run(
        [sys.executable, "-m", "gateway"],
        cwd=ROOT,
        env={**BARE, "PYTHONPATH": f"{ROOT}:{ROOT / 'protos'}", **variables},
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert ended.returncode == 2
    return ended.stderr


def test_it_does_not_start_without_webhook_secrets_and_names_all_that_is_missing() -> None:
    output = refusal({"TWILIO_AUTH_TOKEN": " , ", "PUBLIC_URL": "hooks"})
    for name in ("STRIPE_WEBHOOK_SECRET", "SENDGRID_WEBHOOK_PUBLIC_KEY", "TWILIO_AUTH_TOKEN", "PUBLIC_URL"):
        assert f"{name}: " in output


@pytest.mark.parametrize("key", ["x", "AAAA", ",", signing.SendGridKey().public + ",x"])
def test_a_key_that_is_none_is_refused(tmp_path: Path, key: str) -> None:
    assert "SENDGRID_WEBHOOK_PUBLIC_KEY: " in refusal(settings(tmp_path) | {"SENDGRID_WEBHOOK_PUBLIC_KEY": key})


def test_off_loopback_it_needs_tokens(tmp_path: Path) -> None:
    assert "GATEWAY_AUTH_TOKENS" in refusal(settings(tmp_path) | {"GATEWAY_LISTEN": "0.0.0.0:0"})


@pytest.mark.parametrize(
    "changes",
    [
        {"PUBLIC_URL": "https://hooks.example.com", "GATEWAY_TLS_CLIENT_CA": __file__},
        {"GATEWAY_LISTEN": "0.0.0.0:0", "LOG_LEVEL": "LOUD", "SMS_TARGET_NAME": "sms"},
        {"GATEWAY_TLS_CLIENT_CA": __file__, "GATEWAY_ADMIN_LISTEN": "[::]:0", "SENDGRID_WEBHOOK_WINDOW": "0"},
        {"PUBLIC_URL": "https://hooks.example.com", "STRIPE_WEBHOOK_SECRET": "", "EMAIL_TARGET_NAME": "email"},
    ],
)
def test_refused_settings_are_all_named_at_once(tmp_path: Path, changes: dict[str, str]) -> None:
    wrong = refusal(settings(tmp_path) | changes)
    named = {line.partition(":")[0].replace("AUTH_TOKENS", "LISTEN") for line in wrong.splitlines()}
    assert named == set(changes)


@pytest.mark.parametrize(
    "url", ["https://hooks.example.com", "http://192.168.0.7:8080", "https://[2001:db8::1]/x", "http://gateway:8080"]
)
def test_a_public_url_off_loopback_needs_tokens(tmp_path: Path, url: str) -> None:
    assert "GATEWAY_AUTH_TOKENS" in refusal(settings(tmp_path) | {"PUBLIC_URL": url})


@pytest.mark.parametrize(
    "url",
    [
        "https://x.example:99999",
        "https://x.example:0",
        "https://x.example:x",
        "https://x.example\r\nX: y",
        "https://x.ex\tample",
        "https://x.example/a b",
        "https://user@x.example",
        "https://user:secret@x.example",
        "https://x.example?",
        "https://x.example/?a=b",
        "https://x.example#a",
        "https://x.example\\y",
        "https://clínica.example",
        "https://[::1",
        "https://",
        "ftp://x.example",
        "//x.example",
    ],
)
def test_a_public_url_that_is_none_is_refused(tmp_path: Path, url: str) -> None:
    assert "PUBLIC_URL: must be an address" in (wrong := refusal(settings(tmp_path) | {"PUBLIC_URL": url}))
    assert "secret" not in wrong


@pytest.mark.parametrize("window", ["-1", "0", "inf", "nan", "1e9", "x"])
def test_a_window_that_admits_nothing_or_everything_is_refused(tmp_path: Path, window: str) -> None:
    assert "SENDGRID_WEBHOOK_WINDOW: " in refusal(settings(tmp_path) | {"SENDGRID_WEBHOOK_WINDOW": window})


@pytest.mark.parametrize("keys", ["x", "x:", ":y", "x:y,,z:a", ","])
def test_shared_keys_that_are_none_are_refused(tmp_path: Path, keys: str) -> None:
    assert "TWILIO_SHARED_KEYS: must be" in refusal(settings(tmp_path) | {"TWILIO_SHARED_KEYS": keys})


def test_it_takes_events_while_nothing_else_runs_and_ends_on_sigterm(tmp_path: Path) -> None:
    with process("gateway", settings(tmp_path)) as gateway:
        body = b'{"id":"evt_1","type":"x"}'
        request = urllib.request.Request(
            f"http://{gateway.listening['http']}/webhooks/stripe",
            body,
            signing.stripe_header(body, "whsec_1", int(time.time())),
        )
        with urllib.request.urlopen(request, timeout=10) as answer:
            assert answer.status == 200
        with urllib.request.urlopen(f"http://{gateway.listening['operations']}/readyz", timeout=10) as answer:
            assert answer.status == 200
        assert gateway.end() == 0
        assert "whsec_1" not in "".join(gateway.lines)

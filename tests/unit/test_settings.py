from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
from pydantic import SecretStr, ValidationError

from services.chassis.settings import Address, PerSecond, ProcessSettings, Secrets, load


class Settings(ProcessSettings, process="SMS", port=50053, operations_port=9103):
    twilio_account_sid: str
    twilio_auth_token: Secrets
    twilio_timeout: float = 4.0
    twilio_per_second: PerSecond = 10.0


@pytest.fixture
def complete(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    monkeypatch.setenv("TWILIO_ACCOUNT_SID", "AC1")
    monkeypatch.setenv("TWILIO_AUTH_TOKEN", "first, second")
    return monkeypatch


def test_defaults_belong_to_the_process(complete: pytest.MonkeyPatch) -> None:
    settings = load(Settings)

    assert (settings.listen, settings.operations_listen) == (Address("127.0.0.1", 50053), Address("127.0.0.1", 9103))
    assert settings.database_url == "sqlite:///var/sms.db"


def test_own_variables_have_the_prefix_and_shared_ones_do_not(complete: pytest.MonkeyPatch) -> None:
    complete.setenv("SMS_LISTEN", "[::1]:0")
    complete.setenv("LISTEN", "127.0.0.1:1")
    complete.setenv("LOG_LEVEL", "WARNING")

    assert (load(Settings).listen, load(Settings).log_level) == (Address("::1", 0), "WARNING")


def test_secrets_are_read_from_a_file_and_several_are_valid(complete: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "token").write_text("old,new\n")
    complete.delenv("TWILIO_AUTH_TOKEN")
    complete.setenv("TWILIO_AUTH_TOKEN_FILE", str(tmp_path / "token"))

    assert [secret.get_secret_value() for secret in load(Settings).twilio_auth_token] == ["old", "new"]


def test_variable_takes_precedence_over_its_file(complete: pytest.MonkeyPatch) -> None:
    complete.setenv("TWILIO_AUTH_TOKEN_FILE", "/does/not/exist")

    assert load(Settings).twilio_auth_token == (SecretStr("first"), SecretStr("second"))


def test_all_errors_are_reported_together_by_name_without_values(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("SMS_AUTH_TOKENS", "very-secret")
    monkeypatch.setenv("TWILIO_AUTH_TOKEN_FILE", "/does/not/exist")
    monkeypatch.setenv("TWILIO_TIMEOUT", "soon")
    monkeypatch.setenv("SMS_LISTEN", "50053")
    monkeypatch.setenv("SMS_CALLER_LIMIT", "many")
    monkeypatch.setenv("TWILIO_ACCOUNT_SID", "")

    with pytest.raises(SystemExit) as left:
        load(Settings)

    output = capsys.readouterr().err
    assert left.value.code == 2
    assert sorted(line.split(":")[0] for line in output.splitlines()) == [
        "SMS_AUTH_TOKENS", "SMS_CALLER_LIMIT", "SMS_LISTEN", "TWILIO_ACCOUNT_SID", "TWILIO_AUTH_TOKEN", "TWILIO_TIMEOUT"
    ]  # fmt: skip
    assert "very-secret" not in output


def problems(capsys: pytest.CaptureFixture[str]) -> dict[str, str]:
    """Load wrong settings, and return the messages by variable."""
    with pytest.raises(SystemExit) as left:
        load(Settings)
    assert left.value.code == 2
    return dict(line.split(": ", 1) for line in capsys.readouterr().err.splitlines())


@pytest.mark.parametrize(
    ("given", "named"),
    [("SMS_TLS_CERT", "SMS_TLS_KEY"), ("SMS_TLS_KEY", "SMS_TLS_KEY"), ("SMS_TLS_CLIENT_CA", "SMS_TLS_CLIENT_CA")],
)
def test_incomplete_tls_settings_are_refused(
    complete: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], given: str, named: str
) -> None:
    complete.setenv(given, __file__)

    assert "must be set together with SMS_TLS_CERT" in problems(capsys)[named]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("SMS_TLS_CERT", "/does/not/exist"),
        ("SMS_TLS_KEY", "/"),
        ("SMS_TLS_CLIENT_CA", "/does/not/exist"),
        ("SMS_LISTEN", "0.0.0.0:99999"),
        ("SMS_LISTEN", "127.0.0.1\r\n:80"),
        ("SMS_LISTEN", "http://127.0.0.1:80"),
        ("SMS_LISTEN", "127.0.0.1:-1"),
        ("SMS_LISTEN", "a b:80"),
        ("SMS_OPERATIONS_LISTEN", "[::1:80"),
        ("SMS_DATABASE_URL", "mysql://localhost/sms"),
        ("SMS_DATABASE_URL", "sqlite:///"),
        ("SMS_DATABASE_URL", "sms.db"),
        ("SMS_CALLER_LIMIT", "0/minute"),
        ("SMS_CALLER_LIMIT", "-5/minute"),
        ("SMS_CALLER_LIMIT", "5/minute;1/second"),
        ("SMS_AUTH_TOKENS", f"clinic:read:{hashlib.sha256(b'').hexdigest()}"),
        ("SMS_AUTH_TOKENS", "clinic:read:san=clinic.example"),
        ("SMS_FINGERPRINT_KEYS", "short"),
        ("SMS_FINGERPRINT_KEYS", f"{'k' * 32},{'k' * 15}"),
        ("TWILIO_TIMEOUT", "inf"),
        ("TWILIO_TIMEOUT", "-Infinity"),
        ("TWILIO_TIMEOUT", "nan"),
        ("TWILIO_PER_SECOND", "1e400"),
        ("TWILIO_PER_SECOND", "-1"),
        ("TWILIO_PER_SECOND", "1e-300"),
        ("TWILIO_PER_SECOND", "1e300"),
        ("LOG_LEVEL", "LOUD"),
    ],
)
def test_setting_out_of_range_is_named(
    complete: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], name: str, value: str
) -> None:
    complete.setenv(name, value)

    assert name in problems(capsys)


@pytest.mark.parametrize(
    ("value", "address"),
    [
        ("[::1]:0", Address("::1", 0)),
        ("db-1.internal:80", Address("db-1.internal", 80)),
        ("::1:80", Address("::1", 80)),
    ],
)
def test_address_is_ipv4_ipv6_or_a_name(value: str, address: Address) -> None:
    tokens = f"clinic:read:{hashlib.sha256(b't').hexdigest()}"
    given = {
        "fingerprint_keys": "k" * 16,
        "twilio_account_sid": "AC1",
        "twilio_auth_token": "t",
        "auth_tokens": tokens,
        "listen": value,
    }

    assert Settings.model_validate({**given, "auth_tokens": tokens, "listen": value}).listen == address


@pytest.mark.parametrize("listen", ["0.0.0.0:1", "[::]:1", "10.1.2.3:1", "sms.internal:1"])
def test_listener_off_loopback_needs_tokens(
    complete: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], listen: str
) -> None:
    complete.setenv("SMS_LISTEN", listen)

    reported = problems(capsys)
    assert listen in reported["SMS_AUTH_TOKENS"]
    assert "SMS_FINGERPRINT_KEYS" in reported


def test_rules_between_settings_are_reported_with_the_others(
    complete: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    complete.setenv("SMS_LISTEN", "0.0.0.0:50053")
    complete.setenv("SMS_TLS_CERT", __file__)
    complete.setenv("TWILIO_TIMEOUT", "soon")
    complete.delenv("TWILIO_ACCOUNT_SID")

    assert set(problems(capsys)) == {
        "SMS_AUTH_TOKENS", "SMS_FINGERPRINT_KEYS", "SMS_TLS_KEY", "TWILIO_TIMEOUT", "TWILIO_ACCOUNT_SID"
    }  # fmt: skip


def test_client_certificates_need_token_entries(
    complete: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("SMS_TLS_CERT", "SMS_TLS_KEY", "SMS_TLS_CLIENT_CA"):
        complete.setenv(name, __file__)

    assert "san=" in problems(capsys)["SMS_AUTH_TOKENS"]


def test_settings_are_frozen_and_print_no_secrets(complete: pytest.MonkeyPatch) -> None:
    complete.setenv("SMS_DATABASE_URL", "postgresql://sms:hunter2@localhost/sms")
    settings = load(Settings)

    assert "hunter2" not in repr(settings)
    assert "first" not in repr(settings)
    with pytest.raises(ValidationError):
        settings.twilio_timeout = 5.0

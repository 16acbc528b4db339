from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import SecretStr, ValidationError

from services.chassis.settings import Address, ProcessSettings, Secrets, load


class Settings(ProcessSettings, process="SMS", port=50053, operations_port=9103):
    twilio_account_sid: str
    twilio_auth_token: Secrets
    twilio_timeout: float = 4.0


@pytest.fixture
def complete(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    monkeypatch.setenv("TWILIO_ACCOUNT_SID", "AC1")
    monkeypatch.setenv("TWILIO_AUTH_TOKEN", "first, second")
    return monkeypatch


def test_defaults_belong_to_the_process(complete: pytest.MonkeyPatch) -> None:
    settings = load(Settings)

    assert (settings.listen, settings.operations_listen) == (Address("127.0.0.1", 50053), Address("127.0.0.1", 9103))
    assert settings.database_url == "sqlite:///var/sms.db"


def test_own_names_carry_the_prefix_and_shared_ones_do_not(complete: pytest.MonkeyPatch) -> None:
    complete.setenv("SMS_LISTEN", "[::1]:0")
    complete.setenv("LISTEN", "127.0.0.1:1")
    complete.setenv("LOG_LEVEL", "WARNING")

    assert (load(Settings).listen, load(Settings).log_level) == (Address("::1", 0), "WARNING")


def test_a_secret_may_come_from_a_file_and_several_may_be_valid(complete: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "token").write_text("old,new\n")
    complete.delenv("TWILIO_AUTH_TOKEN")
    complete.setenv("TWILIO_AUTH_TOKEN_FILE", str(tmp_path / "token"))

    assert [secret.get_secret_value() for secret in load(Settings).twilio_auth_token] == ["old", "new"]


def test_the_environment_goes_before_the_file(complete: pytest.MonkeyPatch) -> None:
    complete.setenv("TWILIO_AUTH_TOKEN_FILE", "/does/not/exist")

    assert load(Settings).twilio_auth_token == (SecretStr("first"), SecretStr("second"))


def test_all_problems_are_told_at_once_by_name_and_without_values(
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

    told = capsys.readouterr().err
    assert left.value.code == 2
    assert sorted(line.split(":")[0] for line in told.splitlines()) == [
        "SMS_AUTH_TOKENS", "SMS_CALLER_LIMIT", "SMS_LISTEN", "TWILIO_ACCOUNT_SID", "TWILIO_AUTH_TOKEN", "TWILIO_TIMEOUT"
    ]  # fmt: skip
    assert "very-secret" not in told


@pytest.mark.parametrize("name", ["SMS_TLS_CERT", "SMS_TLS_KEY", "SMS_TLS_CLIENT_CA"])
def test_half_a_tls_setting_is_refused(
    complete: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    complete.setenv(name, "/some/file")

    with pytest.raises(SystemExit):
        load(Settings)

    assert "certificate" in capsys.readouterr().err


def test_settings_neither_change_nor_print_secrets(complete: pytest.MonkeyPatch) -> None:
    complete.setenv("SMS_DATABASE_URL", "postgresql://sms:hunter2@localhost/sms")
    settings = load(Settings)

    assert "hunter2" not in repr(settings)
    assert "first" not in repr(settings)
    with pytest.raises(ValidationError):
        settings.twilio_timeout = 5.0

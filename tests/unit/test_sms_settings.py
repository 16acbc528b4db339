"""What the sms service takes from its environment."""

import pytest

from services.chassis.settings import load
from services.sms.quiet_hours import QuietHours
from services.sms.settings import Settings

SET = {"TWILIO_ACCOUNT_SID": "AC1", "TWILIO_PHONE_NUMBER": "+15005550006", "SMS_PEPPER": "a pepper of sixteen"}


def loaded(monkeypatch: pytest.MonkeyPatch, **changes: str) -> Settings:
    for name, value in {**SET, **changes}.items():
        monkeypatch.setenv(name, value)
    return load(Settings)


def test_an_api_key_goes_before_the_account_s_token(monkeypatch: pytest.MonkeyPatch) -> None:
    assert loaded(monkeypatch, TWILIO_AUTH_TOKEN="new,old").credentials == ("AC1", "new")
    assert loaded(monkeypatch, TWILIO_API_KEY_SID="SK1", TWILIO_API_KEY_SECRET="s").credentials == ("SK1", "s")


def test_magic_numbers_are_texted_at_a_double_only(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not loaded(monkeypatch, TWILIO_AUTH_TOKEN="t").magic_numbers
    assert loaded(monkeypatch, TWILIO_AUTH_TOKEN="t", TWILIO_API_BASE="http://127.0.0.1:8090").magic_numbers


@pytest.mark.parametrize("text", ["22:30-07:00 America/Manaus", "01:00-06:00", "off"])
def test_quiet_hours_are_a_setting(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    assert loaded(monkeypatch, TWILIO_AUTH_TOKEN="t").sms_quiet_hours == QuietHours.parse("21:00-08:00")
    assert loaded(monkeypatch, TWILIO_AUTH_TOKEN="t", SMS_QUIET_HOURS=text).sms_quiet_hours == QuietHours.parse(text)


def test_secrets_do_not_print(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "sixteen" not in repr(loaded(monkeypatch, TWILIO_AUTH_TOKEN="t"))


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({}, "TWILIO_AUTH_TOKEN"),
        ({"TWILIO_API_KEY_SID": "SK1", "TWILIO_AUTH_TOKEN": "t"}, "TWILIO_API_KEY_SECRET"),
        ({"TWILIO_AUTH_TOKEN": "t", "SMS_PEPPER": "short"}, "SMS_PEPPER"),
        ({"TWILIO_AUTH_TOKEN": "t", "SMS_REGIONS": "BR,XX"}, "SMS_REGIONS"),
        ({"TWILIO_AUTH_TOKEN": "t", "SMS_QUIET_HOURS": "21-8"}, "SMS_QUIET_HOURS"),
        ({"TWILIO_AUTH_TOKEN": "t", "SMS_QUIET_HOURS": "21:00-25:00"}, "SMS_QUIET_HOURS"),
        ({"TWILIO_AUTH_TOKEN": "t", "SMS_QUIET_HOURS": "21:00-08:00 Etc/GMT+3"}, "SMS_QUIET_HOURS"),
        ({"TWILIO_AUTH_TOKEN": "t", "TWILIO_PER_SECOND": "0"}, "TWILIO_PER_SECOND"),
    ],
)
def test_what_is_wrong_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], changes: dict[str, str], named: str
) -> None:
    with pytest.raises(SystemExit):
        loaded(monkeypatch, **changes)

    assert named in capsys.readouterr().err


def test_all_that_is_wrong_is_named_in_one_round(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        loaded(monkeypatch, TWILIO_API_KEY_SECRET="s", TWILIO_PER_SECOND="inf", SMS_PEPPER="", SMS_LISTEN="0.0.0.0:1")

    assert {line.split(":")[0] for line in capsys.readouterr().err.splitlines()} == {
        "SMS_AUTH_TOKENS", "SMS_FINGERPRINT_KEYS", "SMS_PEPPER", "TWILIO_API_KEY_SECRET", "TWILIO_AUTH_TOKEN",
        "TWILIO_PER_SECOND",
    }  # fmt: skip

""".env.example names every setting there is, each with its true default, and no other."""

import re
from pathlib import Path

import pytest

import gateway.settings
import services.email.settings
import services.payments.settings
import services.sms.settings
from sandbox.settings import Settings as SandboxSettings
from services.chassis.settings import ProcessSettings

ROOT = Path(__file__).parent.parent.parent
PROCESSES: list[type[ProcessSettings]] = [
    services.payments.settings.Settings,
    services.email.settings.Settings,
    services.sms.settings.Settings,
    gateway.settings.Settings,
]


def written() -> dict[str, str]:
    lines = (ROOT / ".env.example").read_text().splitlines()
    return dict(found.groups() for line in lines if (found := re.fullmatch(r"# ([A-Z][A-Z_]+)=(.*)", line)))  # type: ignore[misc]  # two groups


def known() -> set[str]:
    ours = {process.variable(field) for process in PROCESSES for field in process.model_fields}
    source = (ROOT / "sandbox" / "settings.py").read_text()
    return ours | set(re.findall(r'(?:read|split)\("([A-Z_]+)"', source))


def test_every_setting_is_named_and_no_other() -> None:
    assert set(written()) == known()


@pytest.mark.parametrize("process", PROCESSES)
def test_defaults_are_true(process: type[ProcessSettings]) -> None:
    example = written()
    own = {process.variable(field): value for field, value in process.defaults.items()}
    simple = {
        process.variable(name): field.default
        for name, field in process.model_fields.items()
        if isinstance(field.default, str | float) and field.default and name not in process.defaults
    }
    for name, default in {**own, **simple}.items():
        assert example[name] == (f"{default:g}" if isinstance(default, float) else default)


def test_the_sandboxes_defaults_are_true() -> None:
    assert written()["SANDBOX_LISTEN"] == SandboxSettings.listen
    assert Path(written()["SANDBOX_DATABASE"]) == SandboxSettings.database

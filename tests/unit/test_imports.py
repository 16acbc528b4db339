"""Who may import whom: what keeps the processes independently deployable."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
OURS = {"services", "gateway", "sandbox", "launch", "bench", "tests", "topsmile"}
SDKS = {"stripe", "sendgrid", "twilio", "python_http_client"}

#: Tree → what it may import of ours, and which provider's SDK.
RULES: dict[str, tuple[tuple[str, ...], set[str]]] = {
    "services/chassis": (("services.chassis", "topsmile.common"), set()),
    "services/brazil": (("services.chassis", "services.brazil"), set()),
    "services/payments": (
        ("services.brazil", "services.chassis", "services.payments", "topsmile.common", "topsmile.payments"),
        {"stripe"},
    ),
    "services/messaging": (("services.chassis", "services.messaging", "topsmile.common"), set()),
    "services/email": (
        (
            "services.messaging",
            "services.chassis",
            "services.brazil",
            "services.email",
            "topsmile.common",
            "topsmile.email",
        ),
        {"sendgrid"},
    ),
    "services/sms": (
        (
            "services.messaging",
            "services.chassis",
            "services.brazil",
            "services.sms",
            "topsmile.common",
            "topsmile.sms",
        ),
        {"twilio"},
    ),
    "gateway": (("services.chassis", "gateway", "topsmile"), set()),
    # It judges the others, so it may not share a bug with them.
    "sandbox": (("sandbox",), set()),
    "launch": (("launch", "topsmile"), set()),
    # Judges of the whole: they see what a user sees, and may start what a test may start.
    "chaos": (("chaos", "launch", "topsmile", "tests.postgres_cluster"), set()),
    "failover": (("failover", "launch", "topsmile", "tests.postgres_cluster"), set()),
    "protos/topsmile": (("topsmile",), set()),
}


def imported(file: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: relative imports hide who is meant"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def within(name: str, allowed: tuple[str, ...]) -> bool:
    return any(name == prefix or name.startswith(f"{prefix}.") for prefix in allowed)


@pytest.mark.parametrize("tree", RULES)
def test_a_tree_imports_only_what_it_may(tree: str) -> None:
    allowed, sdks = RULES[tree]
    files = list((ROOT / tree).rglob("*.py"))
    assert files
    wrong = [
        f"{file.relative_to(ROOT)}: {name}"
        for file in files
        for name in imported(file)
        if (name.split(".")[0] in OURS and not within(name, allowed))
        or (name.split(".")[0] in SDKS and name.split(".")[0] not in sdks)
    ]
    assert wrong == []


def test_every_tree_of_ours_has_a_rule() -> None:
    packages = {
        folder.name
        for folder in ROOT.iterdir()
        if folder.is_dir() and not folder.name.startswith(".") and any(folder.rglob("*.py"))
    }
    assert packages - {"services", "protos", "tests", "bench", "var"} <= set(RULES)
    assert {f"services/{f.name}" for f in (ROOT / "services").iterdir() if any(f.glob("*.py"))} <= set(RULES)


def test_no_test_replaces_our_own_code() -> None:
    """Doubles are fakes that work: a test that needs a mock is missing a constructor argument."""
    banned = ("Mock(", "mock.patch", "monkeypatch.setattr")
    here = Path(__file__)
    wrong = [
        f"{file.relative_to(ROOT)}: {word}"
        for file in (ROOT / "tests").rglob("*.py")
        if file != here
        for word in banned
        if word in file.read_text()
    ]
    assert wrong == []

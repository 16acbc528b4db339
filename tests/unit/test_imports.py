"""Which tree may import which, so that each process can be deployed alone."""

import ast
from collections.abc import Iterator, Mapping
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
OURS = {"services", "gateway", "sandbox", "launch", "chaos", "failover", "bench", "tests", "topsmile"}
SDKS = {"stripe", "sendgrid", "twilio", "python_http_client"}

#: Tree → the trees of ours that it may import, and the providers' SDKs.
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
    # The sandbox tests the services, so it shares no code with them.
    "sandbox": (("sandbox",), set()),
    "launch": (("launch", "topsmile"), set()),
    # These test the whole system from outside, and may start what a test may start.
    "chaos": (("chaos", "launch", "topsmile", "tests.postgres_cluster"), set()),
    "failover": (("failover", "launch", "topsmile", "tests.postgres_cluster"), set()),
    "protos/topsmile": (("topsmile",), set()),
}


def imported(source: str, place: object) -> Iterator[str]:
    """Yield the names that a module imports at any level, also in functions and under TYPE_CHECKING."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{place}: imports must be absolute"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def within(name: str, allowed: tuple[str, ...]) -> bool:
    return any(name == prefix or name.startswith(f"{prefix}.") for prefix in allowed)


@pytest.mark.parametrize("tree", RULES)
def test_tree_imports_only_allowed_trees_and_sdks(tree: str) -> None:
    allowed, sdks = RULES[tree]
    files = list((ROOT / tree).rglob("*.py"))
    assert files
    wrong = [
        f"{file.relative_to(ROOT)}: {name}"
        for file in files
        for name in imported(file.read_text(), file)
        if (name.split(".")[0] in OURS and not within(name, allowed))
        or (name.split(".")[0] in SDKS and name.split(".")[0] not in sdks)
    ]
    assert wrong == []


def test_every_tree_has_an_import_rule() -> None:
    packages = {
        folder.name
        for folder in ROOT.iterdir()
        if folder.is_dir() and not folder.name.startswith(".") and any(folder.rglob("*.py"))
    }
    assert packages - {"services", "protos", "tests", "bench", "var"} <= set(RULES)
    assert {f"services/{f.name}" for f in (ROOT / "services").iterdir() if any(f.glob("*.py"))} <= set(RULES)


def cycle(sources: Mapping[str, str]) -> list[str]:
    """Return the modules of one import cycle, empty where there is none. `sources` are by module name."""
    graph = {
        module: {
            target
            for name in imported(source, module)
            for target in (name, name.rpartition(".")[0])
            if target in sources and target != module
        }
        for module, source in sources.items()
    }
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as found:
        modules: list[str] = found.args[1]
        return modules
    return []


def test_repository_has_no_import_cycle() -> None:
    modules = {
        ".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): file.read_text()
        for tree in OURS - {"topsmile"}
        for file in (ROOT / tree).rglob("*.py")
    }

    assert len(modules) > 200
    assert cycle(modules) == []


@pytest.mark.parametrize(
    ("a", "b", "is_cycle"),
    [
        ("import p.b", "import p.a", True),
        ("from p.b import name", "from p import a", True),
        ("import p.b", "def late():\n    from p.a import name", True),
        ("import p.b", "if TYPE_CHECKING:\n    import p.a", True),
        ("import p.b", "import os", False),
    ],
)
def test_import_cycle_is_found_at_every_level(a: str, b: str, is_cycle: bool) -> None:
    assert (cycle({"p.a": a, "p.b": b}) != []) == is_cycle


def test_tests_replace_none_of_our_code() -> None:
    """Tests use working fakes. A test that needs a mock shows a missing constructor argument."""
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

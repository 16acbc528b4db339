"""Every reason that the code raises is in the contract, with its status."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path
from typing import NamedTuple

import pytest
from google.protobuf.descriptor_pb2 import FileDescriptorSet

from services.chassis.rpc.error_details import KINDS

ROOT = Path(__file__).parents[2]
CLASSES = {kind.__name__: kind for kind in KINDS.values()}
PREFIX = "ERROR_REASON_"


class Raised(NamedTuple):
    reason: str
    code: str
    place: str


def documented() -> dict[str, str]:
    """Return the values of ErrorReason with their comments in the contract."""
    written = FileDescriptorSet.FromString(files("topsmile").joinpath("descriptors.binpb").read_bytes())
    (file,) = [file for file in written.file if file.name == "topsmile/common/v1/common.proto"]
    (number,) = [n for n, enum in enumerate(file.enum_type) if enum.name == "ErrorReason"]
    comments = {tuple(each.path): each.leading_comments for each in file.source_code_info.location}
    return {
        value.name.removeprefix(PREFIX): comments[5, number, 2, index]
        for index, value in enumerate(file.enum_type[number].value)
    }


DOCUMENTED = documented()


def texts(node: ast.AST) -> list[str]:
    found = [each.value for each in ast.walk(node) if isinstance(each, ast.Constant)]
    return [text for text in found if isinstance(text, str)]


def named(module: ast.Module, variable: str) -> Iterator[str]:
    """Yield the texts that a module assigns to a variable or passes to a parameter of that name."""
    positions = {
        function.name: [*(each.arg for each in function.args.args if each.arg != "self"), variable].index(variable)
        for function in ast.walk(module)
        if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef)
        and variable in [each.arg for each in (*function.args.args, *function.args.kwonlyargs)]
    }
    for node in ast.walk(module):
        if isinstance(node, ast.Assign):
            names = [each.id for each in node.targets if isinstance(each, ast.Name)]
            yield from texts(node.value) if variable in names else []
        if isinstance(node, ast.Call):
            called = getattr(node.func, "attr", getattr(node.func, "id", ""))
            if called in positions:
                given = [
                    *node.args[positions[called] :][:1],
                    *(each.value for each in node.keywords if each.arg == variable),
                ]
                yield from (text for each in given for text in texts(each))


def raised(module: ast.Module, place: str) -> Iterator[Raised]:
    """Yield the reasons of the errors that a module raises or holds in tables."""
    calls = [node for node in ast.walk(module) if isinstance(node, ast.Call)]
    tables = [node.value for node in module.body if isinstance(node, ast.Assign | ast.AnnAssign) and node.value]
    for name in (node for value in tables for node in ast.walk(value) if isinstance(node, ast.Name)):
        if kind := CLASSES.get(name.id):
            yield Raised(kind.default_reason, kind.code.name, f"{place}:{name.lineno}")
    for call in calls:
        kind = CLASSES.get(getattr(call.func, "id", ""))
        if kind is None:
            continue
        given = next((each.value for each in call.keywords if each.arg == "reason"), None)
        reasons = [kind.default_reason] if given is None else texts(given)
        if isinstance(given, ast.Name):
            reasons = [reason for reason in named(module, given.id) if re.fullmatch(r"[A-Z_]+", reason)]
        for reason in reasons:
            yield Raised(reason, kind.code.name, f"{place}:{call.lineno}")


def everything_raised() -> list[Raised]:
    found: list[Raised] = []
    for folder in ("services", "gateway"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            found += raised(ast.parse(path.read_text()), str(path.relative_to(ROOT)))
    return found


RAISED = everything_raised()


def test_raised_reasons_are_found() -> None:
    reasons = {each.reason for each in RAISED}

    assert len(RAISED) > 60
    assert {"THROTTLED", "SHEDDING", "STORE_FULL", "STORE_UNAVAILABLE", "PAYMENT_OPEN", "QUOTA", "DECLINED"} <= reasons


@pytest.mark.parametrize("reason", sorted({each.reason for each in RAISED}))
def test_raised_reason_is_documented_with_its_status(reason: str) -> None:
    assert reason in DOCUMENTED, [each.place for each in RAISED if each.reason == reason]
    comment = DOCUMENTED[reason]
    over_grpc = [each for each in RAISED if each.reason == reason and each.place.startswith("services/")]
    assert [each for each in over_grpc if each.code not in comment and not comment.startswith(" Of a message")] == [], (
        comment
    )


@pytest.mark.parametrize("reason", sorted(DOCUMENTED.keys() - {"UNSPECIFIED"}))
def test_documented_reason_is_raised(reason: str) -> None:
    assert reason in {each.reason for each in RAISED}


SOURCES = {
    'raise Throttled("a", reason="NEW")': Raised("NEW", "RESOURCE_EXHAUSTED", "x:1"),
    "raise NotSent('a', None, 'b')": Raised("NOT_SENT", "UNAVAILABLE", "x:1"),
    'reason = "A" if full else "B"\nUnavailable("a", reason=reason)': Raised("B", "UNAVAILABLE", "x:2"),
    "TABLE: Codes = ((409, ProviderBusy),)": Raised("PROVIDER_BUSY", "ABORTED", "x:1"),
    "TABLE = {409: ProviderBusy}": Raised("PROVIDER_BUSY", "ABORTED", "x:1"),
    'def f(*, reason): raise Rejected("a", reason=reason)\nf(reason="C")': Raised("C", "FAILED_PRECONDITION", "x:1"),
    'def f(reason): raise Rejected("a", reason=reason)\nf("C")': Raised("C", "FAILED_PRECONDITION", "x:1"),
}


@pytest.mark.parametrize("source", SOURCES)
def test_reason_in_every_form_is_found(source: str) -> None:
    assert SOURCES[source] in list(raised(ast.parse(source), "x"))

"""Read bodies within limits of size and time, and JSON into the contracts' messages; name every wrong field."""

import asyncio
import json
import math
import re
from collections.abc import Collection
from typing import Any

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.duration_pb2 import Duration
from google.protobuf.json_format import MessageToDict
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp
from starlette.requests import Request
from starlette.types import Receive, Scope

from services.chassis.errors import InvalidRequest
from services.chassis.http.problems import Refusal
from services.chassis.rpc.validation import choices
from services.chassis.violations import InvalidValueError, Rule, Violation

SECONDS = 10.0
JSON_AT_MOST = 256 << 10
MAX_DEPTH = 100  # levels of JSON; later readers recurse
#: The escape of half a character: alone, it stands for nothing that UTF-8 can write.
HALF_CHARACTER = re.compile(rb"\\u[dD][89a-fA-F]")
CLOSE = {"connection": "close"}  # the rest of the request is not read


async def read_body(scope: Scope, receive: Receive, max_bytes: int, seconds: float = SECONDS) -> bytes:
    """Return the body; raise Refusal if it is too large, too slow or cut off. A declared length is checked first."""
    declared = dict(scope["headers"]).get(b"content-length", b"")
    if declared.isdigit() and int(declared) > max_bytes:
        raise _too_large(max_bytes)
    body, more = bytearray(), True
    try:
        async with asyncio.timeout(seconds):
            while more:
                message = await receive()
                if message["type"] == "http.disconnect":
                    raise Refusal(400, "BODY_CUT_OFF", "the body must be complete")
                body += message.get("body", b"")
                more = message.get("more_body", False)
                if len(body) > max_bytes:
                    raise _too_large(max_bytes)
    except TimeoutError:
        raise Refusal(408, "BODY_TOO_SLOW", f"the body did not come within {seconds:g} s", CLOSE) from None
    return bytes(body)


def _too_large(max_bytes: int) -> Refusal:
    return Refusal(413, "BODY_TOO_LARGE", f"at max_bytes {max_bytes} bytes are read")


def parse_json(body: bytes) -> Any:
    """Parse UTF-8 JSON; raise Refusal for anything else."""
    try:
        given = _decode(body.decode())
        if HALF_CHARACTER.search(body):
            json.dumps(given, ensure_ascii=False).encode()
        if body.count(b"{") + body.count(b"[") > MAX_DEPTH:
            _require_shallow(given)
    except (ValueError, RecursionError):
        raise Refusal(
            400,
            "MALFORMED_JSON",
            f"the body must be JSON in UTF-8, at max_bytes {MAX_DEPTH} levels deep, with finite numbers",
        ) from None
    return given


def _finite(number: str) -> float:
    value = float(number)
    if not math.isfinite(value):
        raise ValueError(number)
    return value


_decode = json.JSONDecoder(parse_constant=_finite, parse_float=_finite).decode


def _require_shallow(given: object) -> None:
    level = [given]
    for _ in range(MAX_DEPTH + 1):
        level = [
            child
            for each in level
            if isinstance(each, dict | list)
            for child in (each.values() if isinstance(each, dict) else each)
        ]
        if not level:
            return
    raise ValueError(MAX_DEPTH)


async def json_object(request: Request) -> dict[str, Any]:
    given = parse_json(await read_body(request.scope, request.receive, JSON_AT_MOST))
    if not isinstance(given, dict):
        raise InvalidRequest([Rule.WRONG_TYPE.at("", form="an object")])
    return given


def idempotency_key(request: Request, wrong: list[Violation]) -> str:
    key = request.headers.get("idempotency-key", "").strip()
    if not (1 <= len(key) <= 255 and key.isprintable()):
        wrong.append(Rule.NOT_A_KEY.at("Idempotency-Key"))
    return key


def fill(
    message: Message, given: object, wrong: list[Violation], path: str = "", without: Collection[str] = ()
) -> None:
    """
    Set what the JSON says, by either spelling of a field's name; null is the same as left out.

    Fields in `without` come from elsewhere and are unknown here.
    """
    if not isinstance(given, dict):
        wrong.append(Rule.WRONG_TYPE.at(path.removesuffix("."), form="an object"))
        return
    known = {name: field for field in message.DESCRIPTOR.fields for name in (field.name, field.json_name)}
    seen: set[str] = set()
    for name, value in given.items():
        field = known.get(name)
        if field is None or field.name in without:
            wrong.append(Rule.UNKNOWN_FIELD.at(path + name))
        elif field.name in seen:
            wrong.append(Rule.GIVEN_TWICE.at(path + name))
        elif value is not None:
            seen.add(field.name)
            _set(message, field, value, wrong, path + name)


def _set(message: Message, field: Any, value: object, wrong: list[Violation], path: str) -> None:
    choice = field.containing_oneof
    if choice is not None and (taken := message.WhichOneof(choice.name)) not in {None, field.name}:
        wrong.append(Rule.EXCLUDED.at(path, other=taken))
        return
    try:
        if field.message_type is not None and field.message_type.GetOptions().map_entry:
            _set_map(getattr(message, field.name), value)
        elif field.is_repeated:
            if not isinstance(value, list):
                raise InvalidValueError(Rule.WRONG_TYPE, form="a list")  # noqa: TRY301 - every wrong value goes the same way
            getattr(message, field.name).extend([_scalar(field, each) for each in value])
        elif field.message_type is None:
            setattr(message, field.name, _scalar(field, value))
        else:
            _set_message(getattr(message, field.name), value, wrong, path)
    except InvalidValueError as error:
        wrong.append(error.rule.at(path, **error.values))


def _set_message(message: Message, value: object, wrong: list[Violation], path: str) -> None:
    if not isinstance(message, Timestamp | Duration):
        message.SetInParent()
        fill(message, value, wrong, f"{path}.")
        return
    form = "a time such as 2026-03-12T14:30:00-03:00" if isinstance(message, Timestamp) else "seconds such as 86400s"
    try:
        if not isinstance(value, str):
            raise ValueError(value)  # noqa: TRY004, TRY301 - as any other wrong value
        message.FromJsonString(value)
    except (ValueError, OverflowError, IndexError):
        raise InvalidValueError(Rule.WRONG_TYPE, form=form) from None


def _set_map(entries: Any, value: object) -> None:
    if not isinstance(value, dict) or not all(isinstance(each, str) for each in value.values()):
        raise InvalidValueError(Rule.WRONG_TYPE, form="an object of texts")
    entries.update(value)


def _scalar(field: Any, value: object) -> object:
    if field.enum_type is not None:
        return _enum(field.enum_type, value)
    if field.type == FieldDescriptor.TYPE_INT32:  # the contracts have no other integers
        return _integer(value)
    kind, name = (bool, "true or false") if field.type == FieldDescriptor.TYPE_BOOL else (str, "a text")
    if not isinstance(value, kind):
        raise InvalidValueError(Rule.WRONG_TYPE, form=name)
    return value


def _integer(value: object) -> int:
    if isinstance(value, str) and value.removeprefix("-").isdecimal() and value.isascii() and len(value) < 20:
        value = int(value)
    if not isinstance(value, int) or isinstance(value, bool):
        raise InvalidValueError(Rule.WRONG_TYPE, form="a whole number")
    if not -(2**31) <= value < 2**31:
        raise InvalidValueError(Rule.OUT_OF_RANGE, min=-(2**31), max=2**31 - 1)
    return value


def _enum(kind: Any, value: object) -> int:
    """Accept `PIX` as well as `PAYMENT_METHOD_PIX`."""
    known = choices(kind)
    prefix = kind.values_by_number[0].name.removesuffix("UNSPECIFIED")
    if not isinstance(value, str) or value.removeprefix(prefix) not in known:
        raise InvalidValueError(Rule.NOT_A_CHOICE, choices=", ".join(known))
    return known[value.removeprefix(prefix)]


def to_json(message: Message) -> dict[str, Any]:
    """Return a message of a contract as JSON: names in snake_case, enum values by name."""
    return MessageToDict(message, preserving_proto_field_name=True, always_print_fields_with_no_presence=True)

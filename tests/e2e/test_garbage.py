"""
Garbage is its sender's error: every field of every RPC is given values that nobody should send, on both databases.

The RPCs and their fields are found in the contracts, so a new one is tried without a word here.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import time
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import urlencode

import grpc
import pytest
from google.protobuf.descriptor import FieldDescriptor, MethodDescriptor
from google.protobuf.message_factory import GetMessageClass

from tests.e2e.whole import Whole, whole
from tests.postgres_cluster import Cluster
from topsmile.common.v1 import common_pb2 as common
from topsmile.email.v1 import email_pb2
from topsmile.payments.v1 import payments_pb2
from topsmile.sms.v1 import sms_pb2

CONTRACTS = {"payments": payments_pb2.DESCRIPTOR, "email": email_pb2.DESCRIPTOR, "sms": sms_pb2.DESCRIPTOR}
METHODS = [
    (target, method)
    for target, contract in CONTRACTS.items()
    for service in contract.services_by_name.values()
    for method in service.methods
]
SENDERS_FAULT = {
    "OK", "INVALID_ARGUMENT", "NOT_FOUND", "ALREADY_EXISTS", "FAILED_PRECONDITION", "OUT_OF_RANGE", "ABORTED",
}  # fmt: skip

numbers = itertools.count(1)
NOW = int(time.time())
START = NOW + 30 * 86_400
#: What is right in a field, by its name or by its message's and its own. What is not here is left out.
RIGHT: dict[str, Callable[[], object]] = {
    "idempotency_key": lambda: f"key {next(numbers)}",
    "appointment_id": lambda: f"apt {next(numbers)}",
    "patient_id": lambda: "pat 1",
    "patient_name": lambda: "Ana Souza",
    "currency": lambda: "BRL",
    "amount_minor": lambda: 15000,
    "recipient": lambda: f"+55119{20_000_000 + next(numbers)}",
    "Recipient.address": lambda: "ana@example.com",
    "SendSmsRequest.body": lambda: "Bom dia",
    "code": lambda: "123456",
    "kind": lambda: 1,
    "payment_id": lambda: "pay_000000000000000000000000",
    "email_id": lambda: "eml_000000000000000000000000",
    "sms_id": lambda: "sms_000000000000000000000000",
    "start_time": lambda: START,
    "paid_time": lambda: START,
    "received_time": lambda: START,
    "event_id": lambda: f"evt {next(numbers)}",
    "type": lambda: "payment_intent.succeeded",
    "ProviderEvent.body": lambda: b"{}",
}
#: Stands in a text for bytes that Python would not put there.
HOLE = "@@@@"
TEXTS: list[str | bytes] = [
    "", " ", "\0", "apt\0", "\x1b[31m", "\x7f", "\ufffe", "\U0010ffff", "\u202e", "\u00ad", "x" * 70_000, "é" * 256,
    "' OR 1=1 --", "%00%ff", "../../etc/passwd", "1e400", "-1", "NaN", "c999999999999999999", "<@>", "+55", "٣٤٥", "[",
    b"\xed\xa0\x80A", b"\xff\xfe\xfd\xfc", b"\xc0\x80AA",
]  # fmt: skip
BYTES = [b"", b"\0", b"{", b"null", b"[]", b'"\\ud800"', b'{"a":1e400}', b"[" * 60_000, b"\xff" * 99, b"a=%00&b=%ff"]
SECONDS = [0, -1, 1, -62_135_596_801, -62_135_596_800, 253_402_300_799, 253_402_300_800, 2**63 - 1, -(2**63)]
ENUMS = [0, -1, 99, 2**31 - 1, -(2**31)]
MAPS: list[dict[str, str]] = [
    {"": ""}, {"\0": "x"}, {"x": "\0"}, {"x" * 5000: "x"}, {"x": "x" * 5000}, {"[]": "x"}, {"x": "\u202e"},
    {str(number): "x" for number in range(500)},
]  # fmt: skip


@pytest.fixture(scope="module", params=["sqlite", "postgres"])
def system(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Whole]:
    given = {"STRIPE_PER_SECOND": "10000", "SENDGRID_PER_SECOND": "10000", "TWILIO_PER_SECOND": "10000"}
    if request.param == "postgres":
        server: Cluster = request.getfixturevalue("postgres")
        given |= {f"{name}_DATABASE_URL": server.database() for name in ("PAYMENTS", "EMAIL", "SMS", "GATEWAY")}
    with whole(tmp_path_factory.mktemp("garbage"), given) as running:
        yield running


def right(descriptor: Any) -> Any:
    """Make a request that its method takes."""
    message = GetMessageClass(descriptor)()
    fill(message)
    return message


def fill(message: Any) -> None:
    for field in message.DESCRIPTOR.fields:
        value = RIGHT.get(f"{message.DESCRIPTOR.name}.{field.name}") or RIGHT.get(field.name)
        if field.containing_oneof is not None and message.WhichOneof(field.containing_oneof.name):
            continue
        if is_map(field):
            continue
        if field.message_type is None:
            if value is not None:
                setattr(message, field.name, value())
        elif field.is_repeated:
            fill(getattr(message, field.name).add())
        elif field.message_type.full_name == "google.protobuf.Timestamp":
            if value is not None:
                getattr(message, field.name).seconds = value()
        elif field.message_type.file.package.startswith("topsmile") and field.name != "payer":
            fill(getattr(message, field.name))
            getattr(message, field.name).SetInParent()


def is_map(field: FieldDescriptor) -> bool:
    return field.message_type is not None and bool(field.message_type.GetOptions().map_entry)


def spoilt(descriptor: Any) -> Iterator[tuple[str, bytes]]:
    """Yield the right request with garbage in one field after the other, serialised, each with the field's path."""
    for path in paths(right(descriptor)):
        *parents, last = path
        field = find(right(descriptor), parents).DESCRIPTOR.fields_by_name[last]
        for garbage in garbage_for(field):
            request = right(descriptor)
            message = find(request, parents)
            hole = put(message, field, garbage)
            wire = request.SerializeToString()
            yield ".".join(path), wire.replace(HOLE.encode(), hole) if hole else wire


def find(message: Any, path: list[str]) -> Any:
    for name in path:
        child = getattr(message, name)
        message = child[0] if message.DESCRIPTOR.fields_by_name[name].is_repeated else child
    return message


def paths(message: Any) -> Iterator[list[str]]:
    for field in message.DESCRIPTOR.fields:
        yield [field.name]
        child = field.message_type
        if child is not None and child.file.package.startswith("topsmile") and not is_map(field):
            value = getattr(message, field.name)
            for path in paths(value[0] if field.is_repeated else value):
                yield [field.name, *path]


def garbage_for(field: FieldDescriptor) -> list[Any]:
    if is_map(field):
        return [*MAPS, b"\xed\xa0\x80A"]
    if field.message_type is not None:
        times = field.message_type.full_name in {"google.protobuf.Timestamp", "google.protobuf.Duration"}
        spans = [(seconds, nanos) for seconds in SECONDS for nanos in (0, 1, 999_999_999, -1, -(2**31), 2**31 - 1)]
        return spans if times else [0, 1000] if field.is_repeated else [None]
    if field.enum_type is not None:
        return ENUMS
    if field.type == FieldDescriptor.TYPE_STRING:
        return TEXTS
    if field.type == FieldDescriptor.TYPE_BYTES:
        return BYTES
    bits = 31 if field.type == FieldDescriptor.TYPE_INT32 else 63
    return [True, False] if field.type == FieldDescriptor.TYPE_BOOL else [0, 1, -1, 2**bits - 1, -(2**bits)]


def put(message: Any, field: FieldDescriptor, garbage: Any) -> bytes:
    """Set it; return the bytes for the hole, if there is one."""
    if isinstance(garbage, bytes) and field.type != FieldDescriptor.TYPE_BYTES:
        put(message, field, {"x": HOLE} if is_map(field) else HOLE)
        return garbage
    value = getattr(message, field.name)
    if is_map(field):
        value.clear()
        value.update(garbage)
    elif field.is_repeated:
        if field.message_type is None:
            value.extend([garbage] * 3)
        else:
            one = GetMessageClass(field.message_type)()
            fill(one)
            del value[:]
            value.extend([one] * garbage)
    elif isinstance(garbage, tuple):
        value.seconds, value.nanos = garbage
    elif garbage is None:
        message.ClearField(field.name)
    else:
        setattr(message, field.name, garbage)
    return b""


async def answers(system: Whole, target: str, method: MethodDescriptor, requests: list[bytes]) -> list[str]:
    """Send them, a few side by side; return the names of the status codes."""
    few = asyncio.Semaphore(16)
    channel: Any  # it sends bytes as they are
    path = f"/{method.containing_service.full_name}/{method.name}"
    async with grpc.aio.insecure_channel(system.settings[f"{target.upper()}_LISTEN"]) as channel:

        async def send(wire: bytes) -> str:
            async with few:
                try:
                    if method.server_streaming:
                        await channel.unary_stream(path)(wire, timeout=3).read()
                    else:
                        await channel.unary_unary(path)(wire, timeout=20)
                except grpc.aio.AioRpcError as error:
                    # A watch that was accepted and has nothing to report stays open.
                    watching = method.server_streaming and error.code() is grpc.StatusCode.DEADLINE_EXCEEDED
                    return "OK" if watching else str(error.code().name)
                return "OK"

        return await asyncio.gather(*map(send, requests))


def crashes(system: Whole) -> list[str]:
    lines = [line for process in system.running.values() for line in process.lines]
    return [line for line in lines if "Traceback" in line or '"exception"' in line]


@pytest.mark.parametrize(("target", "method"), METHODS, ids=lambda part: getattr(part, "full_name", part))
async def test_garbage_in_any_field_of_any_rpc_is_the_sender_s_error(
    system: Whole, target: str, method: MethodDescriptor
) -> None:
    usual = await answers(system, target, method, [right(method.input_type).SerializeToString()])
    tried = list(spoilt(method.input_type))

    codes = await answers(system, target, method, [wire for _, wire in tried])

    bad = Counter((path, code) for (path, _), code in zip(tried, codes, strict=True) if code not in SENDERS_FAULT)
    assert usual[0] in {"OK", "NOT_FOUND"}
    assert (bad, crashes(system)) == ({}, [])


@pytest.mark.parametrize(("target", "method"), METHODS, ids=lambda part: getattr(part, "full_name", part))
async def test_bytes_that_are_no_message_are_the_sender_s_error(
    system: Whole, target: str, method: MethodDescriptor
) -> None:
    wire = right(method.input_type).SerializeToString()
    broken = [wire[:-1] or b"\x0a", b"\xff" * 40, b"\x0a\xff\xff\xff\xff\x0f", b"\x0b" * 2000, b"\x08"]

    assert {*await answers(system, target, method, broken)} == {"INVALID_ARGUMENT"}


EVENTS: dict[str, Any] = {
    "payments": {
        "id": "EVENT", "object": "event", "type": "payment_intent.succeeded", "created": NOW, "livemode": False,
        "api_version": "2025-01-01",
        "data": {"object": {
            "id": "pi_1", "object": "payment_intent", "status": "succeeded", "amount": 15000, "amount_received": 15000,
            "currency": "brl", "created": NOW, "client_secret": "pi_1_secret", "latest_charge": "ch_1",
            "livemode": False, "metadata": {"topsmile_payment_id": "SUBJECT"}, "payment_method_types": ["card"],
            "next_action": {"type": "pix_display_qr_code"}, "payment_method": {"type": "pix"}, "canceled_at": NOW,
            "last_payment_error": {"code": "card_declined", "decline_code": "x"}, "cancellation_reason": "abandoned",
        }},
    },
    "email": {
        "event": "bounce", "email": "ana@example.com", "timestamp": NOW, "email_id": "SUBJECT", "attempt": "1",
        "sg_event_id": "1", "sg_message_id": "abc.recvd-1", "smtp-id": "<1@x>", "type": "bounce", "reason": "550 no",
        "status": "5.1.1", "bounce_classification": "Invalid Address", "category": ["a"],
    },
    "sms": {
        "MessageSid": "SUBJECT", "SmsSid": "SUBJECT", "MessageStatus": "undelivered", "SmsStatus": "failed",
        "ErrorCode": "30003", "ErrorMessage": "Unreachable", "AccountSid": "AC1", "To": "+5511912345678",
    },
}  # fmt: skip
#: As JSON: Python would not write some of them.
VALUES = [
    "null", "true", "-1", "0", "1.5", "1e400", "-1e400", "NaN", "1" * 400, "[]", "{}", '""', '"\\u0000"', '"\\ud800"',
    '"SUBJECT\\u0000"', f'"{"x" * 5000}"', "9" * 19, "253402300800", '{"object": 1}', "[null]",
]  # fmt: skip
FORM_VALUES = ["", "\0", "SUBJECT\0", "x" * 5000, "\ufffe", "-1", "1e400", "\U0010ffff", b"\xed\xa0\x80"]
MAKERS = {
    "payments": ("PaymentService", "CreatePayment", "payment", "payment_id"),
    "email": ("EmailService", "SendAppointmentConfirmation", "email", "email_id"),
    "sms": ("SmsService", "SendSms", "sms", "sms_id"),
}


def spoilt_events(target: str) -> list[list[bytes]]:
    """Write the event with garbage in one place after the other: a list of bodies for each place."""
    event = EVENTS[target]
    if target == "sms":
        return [[urlencode({**event, name: value}).encode() for value in FORM_VALUES] for name in event]
    return [[json.dumps(marked).replace('"MARK"', value).encode() for value in VALUES] for marked in marks(event)]


def marks(value: Any) -> Iterator[Any]:
    yield "MARK"
    if isinstance(value, dict):
        for key, child in value.items():
            yield from ({**value, key: marked} for marked in marks(child))


async def subject(system: Whole, target: str) -> str:
    """Make a payment, an email or a text for the events to be about."""
    service, name, made, id = MAKERS[target]
    method = CONTRACTS[target].services_by_name[service].methods_by_name[name]
    async with grpc.aio.insecure_channel(system.settings[f"{target.upper()}_LISTEN"]) as channel:
        answer: bytes = await channel.unary_unary(f"/{method.containing_service.full_name}/{name}")(
            right(method.input_type).SerializeToString()
        )
    return str(getattr(getattr(GetMessageClass(method.output_type).FromString(answer), made), id))


def provider_event(body: bytes, subject_id: str, event_id: str = "") -> common.ProviderEvent:
    id = event_id or f"evt_{next(numbers)}"
    written = body.replace(b"SUBJECT", subject_id.encode()).replace(b"EVENT", json.dumps(id)[1:-1].encode())
    event = common.ProviderEvent(event_id=id, type="payment_intent.succeeded", body=written)
    event.query = f"sms_id={subject_id}"
    event.received_time.seconds = NOW
    return event


@pytest.mark.parametrize("target", CONTRACTS)
async def test_garbage_inside_an_event_is_told_of_that_event_alone(system: Whole, target: str) -> None:
    (method,) = [method for name, method in METHODS if name == target and method.name == "ApplyEvents"]
    unspoilt = (urlencode(EVENTS[target]) if target == "sms" else json.dumps(EVENTS[target])).encode()
    id = await subject(system, target)
    batches = [[provider_event(unspoilt, id, bad) for bad in ("\0", "evt\0", "x" * 5000, "\ufffe", "é")]]
    for bodies in [*spoilt_events(target), [unspoilt]]:
        id = await subject(system, target)
        batches.append([provider_event(body, id) for body in bodies])
    request = GetMessageClass(method.input_type)

    codes = await answers(system, target, method, [request(events=each).SerializeToString() for each in batches])

    wrong = [(code, batch[0].body) for code, batch in zip(codes, batches, strict=True) if code != "OK"]
    assert (wrong, crashes(system)) == ([], [])

"""What holds for every contract, the common one included."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from google.protobuf.descriptor import Descriptor, FieldDescriptor, FileDescriptor

from gateway.bodies import to_json
from topsmile.common.v1 import common_pb2 as common
from topsmile.common.v1 import queue_admin_pb2
from topsmile.email.v1 import email_pb2
from topsmile.payments.v1 import payments_pb2
from topsmile.sms.v1 import sms_pb2

CONTRACTS: tuple[FileDescriptor, ...] = (
    common.DESCRIPTOR,
    queue_admin_pb2.DESCRIPTOR,
    payments_pb2.DESCRIPTOR,
    email_pb2.DESCRIPTOR,
    sms_pb2.DESCRIPTOR,
)
#: TypeScript reads these as BigInt or string: JSON.stringify throws, or quotes them.
SIXTY_FOUR_BITS = {
    FieldDescriptor.TYPE_INT64,
    FieldDescriptor.TYPE_UINT64,
    FieldDescriptor.TYPE_SINT64,
    FieldDescriptor.TYPE_FIXED64,
    FieldDescriptor.TYPE_SFIXED64,
}


def _fields(message: Descriptor) -> Iterator[FieldDescriptor]:
    yield from message.fields
    for nested in message.nested_types:
        yield from _fields(nested)


@pytest.mark.parametrize("contract", CONTRACTS, ids=lambda contract: contract.name)
def test_contract_integers_fit_a_javascript_number(contract: FileDescriptor) -> None:
    fields = [field for message in contract.message_types_by_name.values() for field in _fields(message)]
    assert [field.full_name for field in fields if field.type in SIXTY_FOUR_BITS] == []


@pytest.mark.parametrize("amount", [1, 15_000, 99_999_999, 2**31 - 1])
def test_amount_in_json_is_a_number(amount: int) -> None:
    assert to_json(common.Money(amount_minor=amount, currency="BRL"))["amount_minor"] == amount


@pytest.mark.parametrize("amount", [2**31, -(2**31) - 1, 2**32 + 15_000, 2**63 - 1])
def test_amount_beyond_32_bits_cannot_be_set(amount: int) -> None:
    with pytest.raises(ValueError, match="out of range"):
        common.Money(amount_minor=amount)


@pytest.mark.parametrize("contract", CONTRACTS[1:], ids=lambda contract: contract.name)
def test_service_contract_repeats_nothing_of_the_common_one(contract: FileDescriptor) -> None:
    shared = {*common.DESCRIPTOR.message_types_by_name, *common.DESCRIPTOR.enum_types_by_name}
    assert not shared & {*contract.message_types_by_name, *contract.enum_types_by_name}

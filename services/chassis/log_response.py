"""The fields of a response that the log line shows: ids, the status, and the outcome of an event."""

from typing import Any

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

from services.chassis import context

IDS = frozenset({"payment_id", "email_id", "sms_id", "event_id", "subject"})
#: Characters. Longer ids are hashes that the gateway makes of events without an id, and identify nothing.
MAX_ID_LENGTH = 60
#: Field → the enum's prefix, which the log omits, and the key in the log. `outcome` alone is a job's.
ENUMS = {"status": ("STATUS_", "status"), "outcome": ("OUTCOME_", "event_outcome")}


def log_response(message: Message) -> None:
    """Add the fields of a response and of the messages in it to the log line. A list counts if it has one element."""
    context.note(**_fields(message))
    for field, value in message.ListFields():
        if field.type == field.TYPE_MESSAGE and not _is_map(field):
            one: Any = value if isinstance(value, Message) else value[0] if len(value) == 1 else None
            if isinstance(one, Message):
                context.note(**_fields(one))


def _is_map(field: FieldDescriptor) -> bool:
    return field.message_type is not None and field.message_type.GetOptions().map_entry


def _fields(message: Message) -> dict[str, str]:
    found = {}
    for field, value in message.ListFields():
        if field.name in IDS and len(value) <= MAX_ID_LENGTH:
            found[field.name] = value
        elif field.name in ENUMS and field.enum_type and value in field.enum_type.values_by_number:
            prefix, key = ENUMS[field.name]
            found[key] = field.enum_type.values_by_number[value].name.rpartition(prefix)[2]
    return found

"""What an answer says that a log line should: the ids of what it is about, its status, the outcome of each event."""

from typing import Any

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

from services.chassis import context

IDS = frozenset({"payment_id", "email_id", "sms_id", "event_id", "subject"})
LONGEST = 60  #: Characters: the hash that the gateway makes of an event without an id says nothing to anybody.
#: Field → what stands before the word in the names of its values, and the key in the log: a job has an outcome, too.
ENUMS = {"status": ("STATUS_", "status"), "outcome": ("OUTCOME_", "event_outcome")}


def note_answer(message: Message) -> None:
    """Note what is in the message itself and in the messages in it; of a list, only where it holds a single one."""
    context.note(**_found(message))
    for field, value in message.ListFields():
        if field.type == field.TYPE_MESSAGE and not _is_map(field):
            one: Any = value if isinstance(value, Message) else value[0] if len(value) == 1 else None
            if isinstance(one, Message):
                context.note(**_found(one))


def _is_map(field: FieldDescriptor) -> bool:
    return field.message_type is not None and field.message_type.GetOptions().map_entry


def _found(message: Message) -> dict[str, str]:
    found = {}
    for field, value in message.ListFields():
        if field.name in IDS and len(value) <= LONGEST:
            found[field.name] = value
        elif field.name in ENUMS and field.enum_type and value in field.enum_type.values_by_number:
            prefix, key = ENUMS[field.name]
            found[key] = field.enum_type.values_by_number[value].name.rpartition(prefix)[2]
    return found

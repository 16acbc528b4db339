"""What a provider's event says about a message, and why an event changes nothing."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple, TypeAlias


@dataclass(frozen=True)
class StatusEvent:
    """
    A message's new status. One of `message_id` and `provider_message_id` is not empty.

    `detail` is the provider's and may quote the recipient's address: for the record only.
    """

    provider: str
    event_id: str
    status: str
    provider_message_id: str = ""
    #: As the event names it; it may be another installation's.
    message_id: str = ""
    #: The number of the attempt; 0: the event does not name it.
    attempt: int = 0
    #: Epoch milliseconds of the provider's clock; None: the event does not say.
    happened_at: int | None = None
    detail: str = ""
    failure_reason: str = ""
    #: When the gateway received it, epoch milliseconds of its clock; 0: not known.
    received_at: int = 0


class IgnoredEvent(NamedTuple):
    """Not about a message of ours, or of a type that changes no status."""

    why: str


class InvalidEvent(NamedTuple):
    """It cannot be understood, and never will be."""

    why: str


Event: TypeAlias = StatusEvent | IgnoredEvent | InvalidEvent

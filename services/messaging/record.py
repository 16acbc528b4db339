"""A message as it is remembered: everything but its words."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from google.protobuf.timestamp_pb2 import Timestamp

from services.messaging.status import RANKS, to_proto
from topsmile.common.v1 import common_pb2 as common


@dataclass(frozen=True)
class Change:
    status: str
    changed_at: int
    detail: str


@dataclass(frozen=True)
class Waiting:
    """Why a message is not handed over yet: a reason of ErrorReason, QUIET_HOURS or PARKED; `until` may be unknown."""

    reason: str = ""
    until: int | None = None


@dataclass(frozen=True)
class MessageRecord:
    """Times are epoch milliseconds of the database's clock; `now` is when it was read."""

    message_id: str
    template: str
    recipient: str
    recipient_name: str
    appointment_id: str
    encoding: str
    segments: int
    stored_status: str
    rank: int
    scheduled_at: int
    expires_at: int
    created_at: int
    updated_at: int
    now: int
    failure_reason: str = ""
    provider: str = ""
    provider_message_id: str = ""
    #: Why it was scheduled for later than it was asked for.
    waiting_reason: str = ""
    #: Its job: state, when it is due, why it was put off last, 1 after a lost answer; empty where the job is gone.
    job_state: str = ""
    due_at: int = 0
    note: str = ""
    attempted: int = 0
    caller: str = ""
    #: Rises with each calendar entry of the appointment.
    revision: int = 0
    #: Statuses after the first one.
    changes: tuple[Change, ...] = ()
    waiting: Waiting = Waiting()

    @property
    def accepted(self) -> bool:
        """The provider has taken it; an event may tell that before the provider's answer does."""
        return self.rank >= RANKS["SENT"]

    @property
    def expired(self) -> bool:
        return self.expires_at <= self.now

    @property
    def status(self) -> str:
        """What its job does tells more than what was stored last."""
        if self.rank > RANKS["QUEUED"]:
            return self.stored_status
        if self.job_state == "running":
            return "SENDING"
        if self.attempted:
            return "UNKNOWN"
        return "SCHEDULED" if self.scheduled_at > self.now else "QUEUED"

    @property
    def held(self) -> Waiting:
        """Return what its own job says about why it waits; a pause of the provider goes before that."""
        if self.accepted or self.job_state not in {"queued", "parked"}:
            return Waiting()
        if self.job_state == "parked":
            return Waiting("PARKED")
        if self.due_at > self.now and (reason := self.note or self.waiting_reason):
            return Waiting(reason, self.due_at)
        return Waiting()

    def shared_fields(self) -> dict[str, Any]:
        """Return the fields that the messages of all contracts have."""
        first = "SCHEDULED" if self.scheduled_at > self.created_at else "QUEUED"
        return {
            "status": to_proto(self.status),
            "template": self.template,
            "appointment_id": self.appointment_id,
            "provider": self.provider,
            "provider_message_id": self.provider_message_id,
            "failure_reason": self.failure_reason,
            "scheduled_time": timestamp(self.scheduled_at),
            "create_time": timestamp(self.created_at),
            "update_time": timestamp(self.updated_at),
            "history": [
                common.StatusChange(
                    status=to_proto(change.status), change_time=timestamp(change.changed_at), detail=change.detail
                )
                for change in (Change(first, self.created_at, ""), *self.changes)
            ],
            "waiting_reason": self.waiting.reason,
            "waiting_time": None if self.waiting.until is None else timestamp(self.waiting.until),
        }


def timestamp(milliseconds: int) -> Timestamp:
    stamp = Timestamp()
    stamp.FromMilliseconds(milliseconds)
    return stamp

"""A text as it is remembered: everything but its words."""

from dataclasses import dataclass

from google.protobuf.timestamp_pb2 import Timestamp

from topsmile.common.v1 import common_pb2 as common
from topsmile.sms.v1 import sms_pb2 as pb

#: A text moves only upwards. SENDING is not stored: a running job makes it of SCHEDULED and QUEUED. What was given up
#: stands below SENT: a callback that proves it was sent after all is believed.
RANKS = {
    "SCHEDULED": 10, "QUEUED": 20, "SENDING": 30, "UNKNOWN": 40, "CANCELED": 50, "EXPIRED": 50, "FAILED": 50,
    "SENT": 60, "DELIVERED": 70, "UNDELIVERED": 70, "SUPPRESSED": 70,
}  # fmt: skip
#: Ended without the provider's having taken it.
NOT_SENT = frozenset({"CANCELED", "EXPIRED", "FAILED", "SUPPRESSED"})
REASONS = frozenset(name.removeprefix("ERROR_REASON_") for name in common.ErrorReason.keys())  # noqa: SIM118 - no mapping


@dataclass(frozen=True)
class Change:
    status: str
    changed_at: int
    detail: str


@dataclass(frozen=True)
class Sms:
    """Times are epoch milliseconds of the database's clock; `now` is when it was read."""

    sms_id: str
    status: str
    recipient: str
    template: str
    segments: int
    encoding: str
    appointment_id: str
    scheduled_at: int
    created_at: int
    updated_at: int
    now: int
    provider: str = ""
    provider_message_id: str = ""
    failure_reason: str = ""
    #: Why its job was put off last; empty at first.
    trouble: str = ""
    #: What came after it was accepted.
    changes: tuple[Change, ...] = ()

    @property
    def rank(self) -> int:
        return RANKS[self.status]

    @property
    def history(self) -> tuple[Change, ...]:
        first = "SCHEDULED" if self.scheduled_at > self.created_at else "QUEUED"
        return (Change(first, self.created_at, ""), *self.changes)

    def to_proto(self) -> pb.Sms:
        return pb.Sms(
            sms_id=self.sms_id,
            status=common.MessageStatus.Value(f"MESSAGE_STATUS_{self.status}"),
            recipient=self.recipient,
            template=self.template,
            segments=self.segments,
            encoding=pb.SmsEncoding.Value(f"SMS_ENCODING_{self.encoding}"),
            appointment_id=self.appointment_id,
            provider=self.provider,
            provider_message_id=self.provider_message_id,
            failure_reason=self.failure_reason,
            scheduled_time=_stamp(self.scheduled_at),
            create_time=_stamp(self.created_at),
            update_time=_stamp(self.updated_at),
            history=[
                common.StatusChange(
                    status=common.MessageStatus.Value(f"MESSAGE_STATUS_{change.status}"),
                    change_time=_stamp(change.changed_at),
                    detail=change.detail,
                )
                for change in self.history
            ],
        )


def _stamp(milliseconds: int) -> Timestamp:
    stamp = Timestamp()
    stamp.FromMilliseconds(milliseconds)
    return stamp

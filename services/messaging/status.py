"""Where a message stands: the statuses that are stored, their ranks, and their names in the contract."""

from topsmile.common.v1 import common_pb2 as common

# A message moves to a higher rank only, and no two ranks of events are equal: the last status does not depend on the
# order in which a provider's events arrive. What a provider reports ranks above what this service gave up: a message
# that was believed lost and is delivered after all is DELIVERED. SENDING is not stored: it is QUEUED, and its job runs.
RANKS = {
    "SCHEDULED": 10, "QUEUED": 20, "UNKNOWN": 30, "CANCELED": 40, "EXPIRED": 40, "FAILED": 40, "SENT": 50,
    "DEFERRED": 60, "UNDELIVERED": 65, "DELIVERED": 70, "SUPPRESSED": 80, "DROPPED": 82, "BOUNCED": 84,
    "COMPLAINED": 90,
}  # fmt: skip
#: FAILED after all, though it was SENT: the provider took it and refused it later, for the account's sake.
EVENT_RANKS = {**RANKS, "FAILED": 62}
#: Ended: cancelling is neither possible nor too late.
ENDED = frozenset(["CANCELED", "EXPIRED", "FAILED", "BOUNCED", "DROPPED", "SUPPRESSED", "COMPLAINED"])
REASONS = frozenset(name.removeprefix("ERROR_REASON_") for name in common.ErrorReason.keys())  # noqa: SIM118 - no mapping


def to_proto(status: str) -> common.MessageStatus.ValueType:
    return common.MessageStatus.Value(f"MESSAGE_STATUS_{status}")

"""What the sms service needs of whoever delivers its texts."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import ClassVar, Protocol

from services.chassis.errors import ProviderRejected


class OptedOut(ProviderRejected):
    """The recipient has asked for no more texts."""


@dataclass(frozen=True)
class Text:
    """One text, ready to go. `attempt` tells two hand-overs of the same sms apart; it only rises."""

    sms_id: str
    attempt: int
    recipient: str
    body: str
    #: Seconds after which the provider, too, must not send it any more.
    valid_for: int


@dataclass(frozen=True)
class Receipt:
    provider_message_id: str
    #: As the provider counts; 0 where it does not say yet.
    segments: int


class SmsProvider(Protocol):
    name: ClassVar[str]

    async def send(self, text: Text) -> Receipt:
        """
        Hand it over.

        Raises NotSent, ProviderThrottled, CredentialsRefused (none of them sent anything, later it may work),
        ProviderRefusedInput, ProviderRejected, OptedOut (never will) and OutcomeUnknown (it may have been taken).
        """
        ...

    async def find(self, recipient: str, body: str, since: datetime) -> Sequence[Receipt]:
        """List what it has taken for this recipient with these very words; some may be others' texts."""
        ...

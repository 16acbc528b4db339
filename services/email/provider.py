"""What the email service needs of whoever delivers its mails."""

from dataclasses import dataclass
from typing import ClassVar, Protocol

from services.email.message import Mailbox


@dataclass(frozen=True)
class Mail:
    """One mail, ready to go. `attempt` tells two hand-overs of the same email apart; it only rises."""

    email_id: str
    attempt: int
    recipient: Mailbox
    subject: str
    text: str
    html: str
    #: An iCalendar file, where there is one.
    invitation: bytes | None = None


class EmailProvider(Protocol):
    name: ClassVar[str]

    async def send(self, mail: Mail) -> str:
        """
        Hand it over; returns the provider's id.

        Raises NotSent, ProviderThrottled, CredentialsRefused (none of them sent anything, later it may work),
        ProviderRefusedInput, ProviderRejected (never will) and OutcomeUnknown (it may have been taken).
        """
        ...

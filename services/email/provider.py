"""What the email service hands to a provider."""

from dataclasses import dataclass

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

"""What the sms service hands to a provider."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Text:
    """One text, ready to go. `attempt` tells two hand-overs of the same sms apart; it only rises."""

    sms_id: str
    attempt: int
    recipient: str
    body: str
    #: Seconds after which the provider, too, must not send it any more.
    valid_for: int

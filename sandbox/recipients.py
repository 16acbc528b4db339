"""The recipients to whom something particular happens: the providers' own, and four of ours."""

import re
from dataclasses import dataclass, field
from typing import NamedTuple

from sandbox.state import Json

LATE_SECONDS = 24 * 3600.0
#: How long a request to a silent recipient is left without an answer.
SILENCE_SECONDS = 30.0
#: Long enough for the receipt to have been delivered before the answer leaves.
EARLY_SECONDS = 1.0


class Step(NamedTuple):
    event: str
    details: Json


@dataclass(frozen=True)
class Fate:
    """What becomes of a message; the last step is the receipt."""

    name: str
    steps: tuple[Step, ...] = field(repr=False)
    hold: float = 0.0
    silent: bool = False
    twice: bool = False
    late: bool = False


PROCESSED = Step("processed", {})
DELIVERED = Step("delivered", {"response": "250 OK", "tls": 1})
BOUNCED = Step("bounce", {"type": "bounce", "status": "5.1.1", "reason": "550 5.1.1 No such mailbox", "tls": 1})
DEFERRED = Step("deferred", {"response": "451 4.3.2 Try again later", "attempt": "1"})

MAILS = {
    fate.name: fate
    for fate in (
        Fate("delivered", (PROCESSED, DELIVERED)),
        Fate("bounced", (PROCESSED, BOUNCED)),
        Fate("complained", (PROCESSED, DELIVERED, Step("spamreport", {}))),
        Fate("suppressed", (Step("dropped", {"reason": "Unsubscribed Address", "status": "5.0.0"}),)),
        Fate("deferred", (PROCESSED, DEFERRED)),
        Fate("dropped", (Step("dropped", {"reason": "Bounced Address", "status": "5.0.0"}),)),
        Fate("silent", (PROCESSED, DELIVERED), hold=SILENCE_SECONDS, silent=True),
        Fate("noreceipt", (PROCESSED,)),
        Fate("early", (PROCESSED, DELIVERED), hold=EARLY_SECONDS),
        Fate("late", (PROCESSED, DELIVERED), twice=True, late=True),
    )
}
#: How the same is spelt at simulator.amazonses.com.
SES = {"success": "delivered", "bounce": "bounced", "complaint": "complained", "suppressionlist": "suppressed"}


def mail_fate(address: str) -> Fate:
    local, _, domain = address.lower().partition("@")
    name = local.split("+")[0]
    if domain == "simulator.amazonses.com":
        name = SES.get(name, name)
    return MAILS.get(name, MAILS["delivered"])


QUEUED, SENT = Step("queued", {}), Step("sent", {})

TEXTS = {
    "+5511900000091": Fate("silent", (QUEUED, SENT, Step("delivered", {})), hold=SILENCE_SECONDS, silent=True),
    "+5511900000092": Fate("noreceipt", (QUEUED, SENT)),
    "+5511900000093": Fate("early", (QUEUED, SENT, Step("delivered", {})), hold=EARLY_SECONDS),
    "+5511900000094": Fate("late", (QUEUED, SENT, Step("delivered", {})), twice=True, late=True),
    "+5511900000095": Fate("undelivered", (QUEUED, SENT, Step("undelivered", {"ErrorCode": 30003}))),
    "+5511900000096": Fate("failed", (QUEUED, Step("failed", {"ErrorCode": 30008}))),
    "+5511900000098": Fate("suspended", (QUEUED, Step("failed", {"ErrorCode": 30002}))),
    "+5511900000099": Fate("unregistered", (QUEUED, Step("failed", {"ErrorCode": 30034}))),
}
NORMAL_TEXT = Fate("delivered", (QUEUED, SENT, Step("delivered", {})))


class TwilioRefusal(NamedTuple):
    code: int
    message: str
    status: int = 400


#: https://www.twilio.com/docs/iam/test-credentials
TO_REFUSED = {
    "+15005550001": TwilioRefusal(21211, "Invalid 'To' Phone Number: +15005550001"),
    "+15005550002": TwilioRefusal(21612, "The 'To' number cannot be reached from the 'From' number"),
    "+15005550003": TwilioRefusal(
        21408, "Permission to send an SMS has not been enabled for the region of the 'To' number"
    ),
    "+15005550004": TwilioRefusal(21610, "Attempt to send to unsubscribed recipient"),
    "+15005550009": TwilioRefusal(21614, "'To' number is not a valid mobile number"),
    "+5511900000097": TwilioRefusal(21610, "Attempt to send to unsubscribed recipient"),
}
FROM_REFUSED = {
    "+15005550001": TwilioRefusal(21212, "Invalid 'From' Number: +15005550001"),
    "+15005550007": TwilioRefusal(21606, "The 'From' number is not one of this account's that can send SMS"),
    "+15005550008": TwilioRefusal(21611, "The 'From' number has reached the maximum of queued messages"),
}
#: Brazilian landlines and 0800 numbers: valid, but no mobiles.
NO_MOBILE = re.compile(r"\+55(?:800\d{6,7}|[1-9]{2}[2-5]\d{7})")
E164 = re.compile(r"\+[1-9]\d{7,14}")


def to_refusal(number: str) -> TwilioRefusal | None:
    if number in TO_REFUSED:
        return TO_REFUSED[number]
    if not E164.fullmatch(number):
        return TwilioRefusal(21211, f"Invalid 'To' Phone Number: {number}")
    return TO_REFUSED["+15005550009"] if NO_MOBILE.fullmatch(number) else None


def text_fate(number: str) -> Fate:
    return TEXTS.get(number, NORMAL_TEXT)

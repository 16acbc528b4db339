"""What the environment says about the email service."""

from email.utils import parseaddr
from typing import Annotated

from pydantic import PlainValidator, SecretStr

from services.chassis.rpc.validation import email_address
from services.chassis.settings import PerSecond, ProcessSettings
from services.chassis.violations import InvalidValueError
from services.email.requests import Mailbox


def _mailbox(text: str | Mailbox) -> Mailbox:
    if isinstance(text, Mailbox):
        return text
    name, address = parseaddr(text)
    try:
        return Mailbox(email_address(address), name)
    except InvalidValueError:
        raise ValueError("must be an address such as clinica@example.com or Clínica <clinica@example.com>") from None


class Settings(ProcessSettings, process="EMAIL", port=50052, operations_port=9102):
    sendgrid_api_key: SecretStr
    #: https://api.eu.sendgrid.com for an account in the EU.
    sendgrid_api_base: str = "https://api.sendgrid.com"
    #: Whom the mails are from, with or without a name.
    from_email: Annotated[Mailbox, PlainValidator(_mailbox)]
    #: Mails a second, by all replicas together.
    sendgrid_per_second: PerSecond = 50.0

"""What the environment says about the email service."""

from email.utils import parseaddr
from typing import Annotated

from email_validator import EmailNotValidError, validate_email
from pydantic import PlainValidator, SecretStr

from services.chassis.settings import PerSecond, ProcessSettings
from services.email.message import Mailbox


def _mailbox(text: str | Mailbox) -> Mailbox:
    if isinstance(text, Mailbox):
        return text
    name, address = parseaddr(text)
    try:
        checked = validate_email(address, check_deliverability=False, test_environment=True)
    except EmailNotValidError:
        raise ValueError("is no address such as clinica@example.com or Clínica <clinica@example.com>") from None
    return Mailbox(checked.normalized, name)


class Settings(ProcessSettings, process="EMAIL", port=50052, operations_port=9102):
    sendgrid_api_key: SecretStr
    #: https://api.eu.sendgrid.com for an account in the EU.
    sendgrid_api_base: str = "https://api.sendgrid.com"
    #: Whom the mails are from, with or without a name.
    from_email: Annotated[Mailbox, PlainValidator(_mailbox)]
    #: Mails a second, by all replicas together.
    sendgrid_per_second: PerSecond = 50.0

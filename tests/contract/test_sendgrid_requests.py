"""What leaves for SendGrid is what its own specification allows."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from services.email.rendering import Mail
from services.email.requests import Mailbox
from services.email.sendgrid_provider import SendGridProvider
from services.email.settings import Settings

SPECIFICATION = Path(__file__).parents[2] / "../shared/provider-specs/tsg_mail_v3.patched.json"

MAILS = {
    "plain": Mail("eml_1", 1, Mailbox("ana@example.com"), "Lembrete de Consulta", "Olá", "<p>Olá</p>"),
    "named, with an invitation": Mail(
        "eml_2", 7, Mailbox("ana@example.com", 'Ana "Aninha" Souza, Dra.'), "Confirmação de Agendamento", "Olá",
        "<p>Olá</p>", b"BEGIN:VCALENDAR\r\nEND:VCALENDAR\r\n",
    ),
}  # fmt: skip


def body(mail: Mail) -> Any:
    provider = SendGridProvider(http=None, sender=Mailbox("contato@topsmile.example", "TopSmile"))  # type: ignore[arg-type]  # nothing is sent
    return json.loads(json.dumps(provider.body(mail)))


@pytest.mark.parametrize("mail", MAILS.values(), ids=MAILS.keys())
def test_a_mail_is_what_the_specification_says(mail: Mail) -> None:
    if not SPECIFICATION.exists():
        pytest.skip("SendGrid's specification is not here: its requests are not checked against it")
    specification = json.loads(SPECIFICATION.read_text())
    reference = specification["components"]["requestBodies"]["PostMailSend"]["content"]["application/json"]["schema"]
    validator = jsonschema.Draft202012Validator({**reference, "components": specification["components"]})

    assert [error.message for error in validator.iter_errors(body(mail))] == []
    assert set(body(mail)) <= set(reference["properties"])


def test_a_name_stays_a_value_whatever_it_holds() -> None:
    sent = body(MAILS["named, with an invitation"])

    assert sent["personalizations"] == [{"to": [{"email": "ana@example.com", "name": 'Ana "Aninha" Souza, Dra.'}]}]


def test_nobody_is_tracked_and_the_event_will_know_the_email() -> None:
    sent = body(MAILS["plain"])

    assert sent["custom_args"] == {"email_id": "eml_1", "attempt": "1"}
    assert not any(tracking["enable"] for tracking in sent["tracking_settings"].values())


def test_an_invitation_is_a_part_and_a_file_of_the_mail_without_a_charset() -> None:
    sent = body(MAILS["named, with an invitation"])
    (attached,) = sent["attachments"]

    assert base64.b64decode(attached["content"]) == b"BEGIN:VCALENDAR\r\nEND:VCALENDAR\r\n"
    assert (attached["type"], attached["filename"]) == ("text/calendar; method=REQUEST", "consulta.ics")
    assert [part["type"] for part in sent["content"]] == ["text/plain", "text/html", "text/calendar; method=REQUEST"]
    assert sent["content"][2]["value"] == "BEGIN:VCALENDAR\r\nEND:VCALENDAR\r\n"


@pytest.mark.parametrize(
    ("sender", "address"),
    [
        ("Saúde <contato@saúde.example>", "contato@xn--sade-rra.example"),
        ("contato@BÜCHER.example", "contato@xn--bcher-kva.example"),
        ("Clínica <agenda@clínica.com.br>", "agenda@xn--clnica-4va.com.br"),
        ("a@topsmile.example", "a@topsmile.example"),
    ],
)
def test_a_sender_s_domain_goes_out_in_ascii(sender: str, address: str) -> None:
    settings = Settings.model_validate({"sendgrid_api_key": "SG.test", "from_email": sender})

    assert settings.from_email.address == address

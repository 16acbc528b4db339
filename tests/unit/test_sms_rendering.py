"""What the texts say."""

import re
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any
from zoneinfo import ZoneInfo

import pytest

from services.chassis.currencies import CURRENCIES
from services.messaging.requests import Appointment, Payment
from services.sms import rendering
from services.sms.segments import size

SAO_PAULO = ZoneInfo("America/Sao_Paulo")


def appointment(**changes: str) -> Appointment:
    facts: dict[str, Any] = {
        "professional": "Dra. Beatriz Lima",
        "clinic": "Clínica Riso",
        "address": "",
        "clinic_phone": "",
        **changes,
    }
    return Appointment(
        appointment_id="apt-1", patient_name="Ana", start_at=datetime(2026, 3, 12, 17, 30, tzinfo=UTC), zone=SAO_PAULO,
        end_at=None, **facts,
    )  # fmt: skip


def test_a_reminder_begins_with_the_agreed_words() -> None:
    bare = rendering.reminder(appointment(professional="", clinic=""))
    assert bare == "Lembrete: Consulta agendada para quinta-feira, 12 de marco às 14h30. Paciente: Ana"


def test_details_are_left_out_before_a_second_segment_is_begun() -> None:
    text = rendering.reminder(appointment(address="Avenida Brigadeiro Faria Lima " * 9, clinic_phone="(11) 3123-4567"))

    assert "Faria Lima" not in text
    assert text.endswith("Clinica Riso. Duvidas: (11) 3123-4567. Paciente: Ana")
    assert size(text).segments == 1


def test_a_code_s_text_is_the_agreed_one() -> None:
    assert rendering.verification("493021") == "Seu codigo de verificacao: 493021"


def test_a_receipt_says_what_was_paid_for() -> None:
    paid = Payment("pay_1", 15000, "BRL", "Limpeza", "apt-1", "Ana", datetime(2026, 3, 13, 1, tzinfo=UTC), "CARD")

    assert rendering.receipt(paid) == "Pagamento recebido: R$ 150,00 em 12/03/2026 por cartao. Limpeza. Paciente: Ana"


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("Đặng Thị Hồng", "Paciente: Dang Thi Hong"),
        ("Łukasz Øyen", "Paciente: Lukasz Øyen"),
        ("José Müller 🦷👩🏽‍⚕️", "Paciente: José Müller"),
        ("Ana 1️⃣", "Paciente: Ana 1"),
        ("Иван Петров", ""),
        ("李明 Li", ""),
        ("A\N{COMBINING LONG STROKE OVERLAY}na", ""),
    ],
)
def test_a_detail_is_written_in_latin_letters_or_left_out(name: str, shown: str) -> None:
    about = replace(appointment(professional="", clinic=""), patient_name=name)
    bare = "Lembrete: Consulta agendada para quinta-feira, 12 de marco às 14h30"

    assert rendering.reminder(about) == (f"{bare}. {shown}" if shown else bare)


def test_a_receipt_keeps_the_currency_of_every_amount() -> None:
    for currency in CURRENCIES:
        paid = Payment("pay_1", 15000, currency, "", "", "", datetime(2026, 3, 13, 1, tzinfo=UTC), "")
        shown = rendering.receipt(paid)
        assert size(shown).encoding == "GSM_7"
        assert re.search(r"recebido: \D{1,5} [\d.,]+ em 12/03/2026$", shown), shown

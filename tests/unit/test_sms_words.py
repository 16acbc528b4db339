"""What the texts say, and when reminders may be sent."""

from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest

from services.sms import words
from services.sms.message import Appointment, Payment
from services.sms.quiet_hours import allowed_at
from services.sms.segments import fold, size

SAO_PAULO, MANAUS = ZoneInfo("America/Sao_Paulo"), ZoneInfo("America/Manaus")
IN_SAO_PAULO, IN_MANAUS, NOWHERE = "+5511912345678", "+5592991234567", "+15005550006"


def appointment(**changes: str) -> Appointment:
    facts = {
        "professional": "Dra. Beatriz Lima",
        "clinic": "Clínica Riso",
        "address": "",
        "clinic_phone": "",
        **changes,
    }
    return Appointment(
        appointment_id="apt-1", patient_name="Ana", start_at=datetime(2026, 3, 12, 17, 30, tzinfo=UTC), zone=SAO_PAULO,
        **facts,
    )  # fmt: skip


def test_a_reminder_begins_with_the_agreed_words() -> None:
    bare = words.reminder(appointment(professional="", clinic=""))
    assert bare == "Lembrete: Consulta agendada para quinta-feira, 12 de março às 14h30. Paciente: Ana"


def test_details_are_left_out_before_a_second_segment_is_begun() -> None:
    text = words.reminder(appointment(address="Avenida Brigadeiro Faria Lima " * 9, clinic_phone="(11) 3123-4567"))

    assert "Faria Lima" not in text
    assert text.endswith("Clínica Riso. Dúvidas: (11) 3123-4567. Paciente: Ana")
    assert size(fold(text)).segments == 1


def test_a_code_s_text_is_the_agreed_one() -> None:
    assert words.verification("493021") == "Seu código de verificação: 493021"


def test_a_receipt_says_what_was_paid_for() -> None:
    paid = Payment("apt-1", 15000, "BRL", "Limpeza", "Ana", datetime(2026, 3, 13, 1, tzinfo=UTC), "CARD")

    assert words.receipt(paid) == "Pagamento recebido: R$ 150,00 em 12/03/2026 por cartão. Limpeza. Paciente: Ana"


def at(hour: int, minute: int = 0, day: int = 12, zone: ZoneInfo = SAO_PAULO) -> datetime:
    return datetime(2026, 3, day, hour, minute, tzinfo=zone)


@pytest.mark.parametrize(
    ("asked", "start", "allowed"),
    [
        (at(8), at(15), at(8)),
        (at(20, 59), at(15, day=13), at(20, 59)),
        (at(21), at(15, day=13), at(8, day=13)),
        (at(3), at(15), at(8)),
        (at(7, 59), at(8, 1), at(8)),
        (at(2), at(7, 30), at(6, 30)),  # 08:00 would be too late: an hour before
        (at(6, 50), at(7, 30), at(6, 50)),  # less than an hour is left: now
        (at(23), at(8, day=13), at(7, day=13)),
    ],
)
def test_reminders_wait_for_the_morning_while_that_is_before_the_appointment(
    asked: datetime, start: datetime, allowed: datetime
) -> None:
    assert allowed_at(asked, IN_SAO_PAULO, start) == allowed


def test_the_night_is_the_recipient_s() -> None:
    start, evening = at(15, day=13), at(21, 30)

    assert allowed_at(evening, IN_MANAUS, start) == evening  # 20:30 there
    assert allowed_at(at(8), IN_MANAUS, start) == at(8, zone=MANAUS)
    assert allowed_at(evening, NOWHERE, start) == at(8, day=13)


def test_no_reminder_is_moved_past_the_start_or_back_in_time() -> None:
    start = at(7, day=13)
    for minutes in range(0, 24 * 60, 7):
        asked = start - timedelta(minutes=minutes)
        assert asked <= allowed_at(asked, IN_SAO_PAULO, start) <= start

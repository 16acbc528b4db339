"""What a text is billed as."""

import pytest

from services.brazil.folding import fold
from services.sms.segments import GSM, GSM_7, UCS_2, size


@pytest.mark.parametrize(
    ("text", "encoding", "segments"),
    [
        ("", GSM_7, 1),
        ("x" * 160, GSM_7, 1),
        ("x" * 161, GSM_7, 2),
        ("x" * 306, GSM_7, 2),
        ("x" * 307, GSM_7, 3),
        ("€" * 80, GSM_7, 1),
        ("€" * 81, GSM_7, 2),
        ("x" * 152 + "€" + "x" * 10, GSM_7, 2),
        # An escape and its character stay together: the first segment ends one early.
        ("x" * 152 + "€" + "x" * 152, GSM_7, 3),
        ("à" * 160, GSM_7, 1),
        ("ã" * 70, UCS_2, 1),
        ("ã" * 71, UCS_2, 2),
        ("ã" * 134, UCS_2, 2),
        ("😀" * 35, UCS_2, 1),
        ("😀" * 36, UCS_2, 2),
        ("😀" * 67, UCS_2, 3),
    ],
)
def test_a_text_is_billed_by_its_alphabet(text: str, encoding: str, segments: int) -> None:
    assert size(text) == (encoding, segments)


def test_folding_a_reminder_saves_two_segments_of_three() -> None:
    text = (
        "Lembrete: Consulta agendada para quinta-feira, 12 de março às 14h30 com a Dra. Beatriz Lima, Clínica Riso."
        " Dúvidas: (11) 3123-4567. Paciente: Ana"
    )

    assert (size(text).segments, size(fold(text, GSM).text).segments) == (3, 1)

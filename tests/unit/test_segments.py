"""How a text is folded, and what it is billed as."""
# ruff: noqa: RUF001 - look-alikes are the subject

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.sms.segments import GSM_7, UCS_2, composed, fold, size


@pytest.mark.parametrize(
    ("text", "folded"),
    [
        ("ãáâàçêéíóôõúü ÃÁÂÀÇÊÉÍÓÔÕÚÜ", "aaaaceeiooouu AAAACEEIOOOUU"),
        ("1º andar, 2ª porta", "1o andar, 2a porta"),
        ("“até” ‘já’ – logo — sim… não", "\"ate\" 'ja' - logo - sim... nao"),
        ("a\u0303 decomposto", "a decomposto"),
        ("Olá 😀 Ana 👩🏽‍⚕️!", "Ola Ana !"),
        ("R$ 150,00\u00a0hoje", "R$ 150,00 hoje"),
        ("½ hora · 3×", "1/2 hora - 3x"),
        ("linha\nnova", "linha\nnova"),
        ("€ [x] {y} ~", "€ [x] {y} ~"),
        ("Łódź, Øyvind, ñandú", "Lodz, Øyvind, nandu"),
        ("Привет", "Привет"),
        ("한글", "한글"),
        ("😀", ""),
    ],
)
def test_a_text_is_folded_to_plain_letters_and_loses_no_letter(text: str, folded: str) -> None:
    assert fold(text) == folded


@given(st.text(max_size=200))
def test_folding_twice_changes_nothing_more(text: str) -> None:
    assert fold(fold(text)) == fold(text)


PORTUGUESE = "áàâãäéêëíïóôõöúüçñÁÀÂÃÉÊÍÓÔÕÚÜÇºª–—“”‘’…•« »" + "".join(map(chr, range(32, 127)))


@given(st.text(PORTUGUESE, max_size=400))
def test_what_portuguese_folds_to_needs_no_unicode(text: str) -> None:
    assert size(fold(text)).encoding == GSM_7


def test_kept_accents_are_composed_to_one_character_each() -> None:
    assert composed(" a\u0303 ") == "ã"


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

    assert (size(composed(text)).segments, size(fold(text)).segments) == (3, 1)

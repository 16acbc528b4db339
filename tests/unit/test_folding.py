"""How a text is written in GSM-7 without losing what it says."""
# ruff: noqa: RUF001 - look-alikes are the subject

import re
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.brazil import folding
from services.brazil.folding import to_ascii
from services.sms.segments import GSM


def fold(text: str) -> folding.Folded:
    return folding.fold(text, GSM)


@pytest.mark.parametrize(
    ("text", "folded"),
    [
        ("ãâçêíóôõú ÃÁÂÀÊÍÓÔÕÚ", "aaceiooou AAAAEIOOOU"),
        ("é à è ù ò ì ä ö ü ñ Ç É Ä Ö Ü Ñ ß æ Æ Ø å", "é à è ù ò ì ä ö ü ñ Ç É Ä Ö Ü Ñ ß æ Æ Ø å"),
        ("Łódź, Đặng Thị Hường, œuvre, Þór, Ağrı, Straẞe", "Lodz, Dang Thi Huong, oeuvre, Thor, Agri, StraSSe"),
        ("“até” ‘já’ – logo — sim… não", "\"até\" 'ja' - logo - sim... nao"),
        ("a\u0303 e\u0301 decomposto", "a é decomposto"),
        ("R$ 150,00\u00a0hoje", "R$ 150,00 hoje"),
        ("linha\nnova\r\noutra", "linha\nnova\noutra"),
        ("€ [x] {y} ~", "€ [x] {y} ~"),
        ("ﬁm № 5 ㎎ Ⓐ Ｗ", "fim No 5 mg A W"),
        ("in\u00advi\u200bsí\u200dvel", "invisivel"),
    ],
)
def test_a_text_is_folded_to_the_letters_that_gsm_7_has(text: str, folded: str) -> None:
    assert fold(text) == (folded, "")


@pytest.mark.parametrize(
    ("text", "folded"),
    [
        ("1½ comprimido", "1 1/2 comprimido"),
        ("2¼kg", "2 1/4 kg"),
        ("¾ de 1⅓", "3/4 de 1 1/3"),
        ("½½", "1/2 1/2"),
        ("10³⁄₄ 3½-4½", "10 3/4 3 1/2-4 1/2"),
        ("10² 10⁻³ 10²³ m² CO₂", "10^2 10^-3 10^23 m2 CO2"),
        ("5²3 5²+3 10⁺³ 1010₂", "5^2 3 5^2+3 10^+3 1010_2"),
        ("①② sala③", "1 2 sala 3"),
        ("classeⅡ, 3Ⅳ", "classe II, 3 IV"),
        ("₩500, 20₹", "KRW 500, 20 INR"),
        ("1º andar, 2ª porta", "1o andar, 2a porta"),
        ("•5 comprimidos · 3×", "*5 comprimidos * 3x"),
        ("≤ 5±1, 6÷2", "<= 5+/-1, 6/2"),
        ("36,5 °C, 500 µg", "36,5 oC, 500 mcg"),
        ("１２ ٣٤", "12 34"),
    ],
)
def test_a_number_does_not_run_into_its_neighbours_when_it_is_folded(text: str, folded: str) -> None:
    assert fold(text) == (folded, "")


@pytest.mark.parametrize(
    ("text", "lost"),
    [
        ("Olá 😀 Ana 👩🏽‍⚕️😀", "😀👩🏽⚕"),
        ("Привет", "Привет"),
        ("한글 字", "한글字"),
        ("✓ pago", "✓"),
        ("a ≠ b", "≠"),
        ("n\N{COMBINING LONG STROKE OVERLAY}o", "\N{COMBINING LONG STROKE OVERLAY}"),
        ("1\N{COMBINING ACUTE ACCENT}", "\N{COMBINING ACUTE ACCENT}"),
        ("ʘ ‰ ¬", "ʘ‰¬"),
    ],
)
def test_what_gsm_7_cannot_say_is_reported(text: str, lost: str) -> None:
    assert fold(text).lost == lost


LETTERS = [
    char
    for char in map(chr, [*range(0xC0, 0x250), *range(0x1E00, 0x1F00)])
    if unicodedata.name(char, "").startswith("LATIN")
]
#: Signs of tones, clicks and other sounds, which no language writes today or no plain letter stands for.
SOUNDS = set("ƄƅƍƛƧƨƪƸƹƺƻƼƽƾǀǁǂǃȸȹ")


@pytest.mark.parametrize("char", [*LETTERS, *"ɐɓɖɗɛɔɨɲʀᴀᴢⱠⱡꜰꞑ"])
def test_a_latin_letter_is_folded_to_plain_ones(char: str) -> None:
    text, lost = fold(char)

    assert lost == (char if char in SOUNDS else "")
    assert set(text) <= GSM
    if char not in SOUNDS and unicodedata.category(char) in {"Lu", "Ll"} and text[0].isalpha():
        assert text[0].isupper() == (unicodedata.category(char) == "Lu")


@given(st.text(max_size=200))
def test_folding_twice_changes_nothing_more(text: str) -> None:
    once = fold(text).text

    assert fold(once) == (once, "")


@given(st.text(max_size=200))
def test_a_folded_text_needs_no_unicode(text: str) -> None:
    assert set(fold(text).text) <= GSM


@given(st.text("".join(sorted(GSM - set("\r"))), max_size=200))
def test_a_text_in_gsm_7_is_only_stripped_of_spaces(text: str) -> None:
    assert fold(text) == (re.sub(" {2,}", " ", text).strip(), "")


NUMBERS = st.text("0123456789½¼⅓²³⁴①⑩Ⅳ٣７₩R ", max_size=30)


@given(NUMBERS)
def test_the_numbers_of_a_text_are_those_that_were_written(text: str) -> None:
    """Each run of digits stands alone before and after: none is cut, none is joined to another."""
    apart = re.sub("([½¼⅓①⑩Ⅳ₩])", r" \1 ", text)
    spaced = re.sub("(?<=[0-9٣７])(?=[²³⁴])|(?<=[²³⁴])(?=[0-9٣７])", " ", apart)

    assert re.findall(r"\d+", fold(text).text) == re.findall(
        r"\d+", unicodedata.normalize("NFKC", spaced).translate({0x663: "3"})
    )


@pytest.mark.parametrize(
    ("text", "written"),
    [
        ("São João, nº 5 – ap. 1½", "Sao Joao, no 5 - ap. 1 1/2"),
        ("Łódź, Straße, Ærø, Đỗ, İzmir", "Lodz, Strasse, AEro, Do, Izmir"),
        ("D\N{RIGHT SINGLE QUOTATION MARK}Ávila & Filhos", "D'Avila & Filhos"),
        ("李明", "李明"),
    ],
)
def test_a_text_is_folded_to_ascii_whole_or_not_at_all(text: str, written: str) -> None:
    assert to_ascii(text) == written

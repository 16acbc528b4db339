"""
How a text is written in a small alphabet, such as ASCII or GSM-7, so that nothing of its meaning is lost.

What the alphabet has stays. Every other Latin letter becomes its plain one, typography its typewriter's form. Numbers
that Unicode writes as one character do not run into their neighbours: `1½` is 1 1/2, `10²` is 10^2.
"""

# ruff: noqa: RUF001 - look-alikes are the subject

import re
import unicodedata
from collections.abc import Iterator
from functools import lru_cache
from typing import NamedTuple

#: What neither Unicode's decompositions nor a letter's name tell.
PLAIN = {
    **dict.fromkeys("‐‑‒–—―−", "-"), **dict.fromkeys("‘’‚‛‹›′ʹʻʼʽ´`Ꞌꞌ", "'"), **dict.fromkeys("“”„‟«»", '"'),
    # No hyphen: `•5` is not minus five.
    **dict.fromkeys("•·∙▪‣◦", "*"), **dict.fromkeys("⁄∕÷", "/"), "×": "x", "∼": "~", "≈": "~", "¦": "|", "±": "+/-",
    "≤": "<=", "≥": ">=", "→": "->", "←": "<-", "©": "(c)", "®": "(R)", "°": "o", "\t": " ",
    **dict.fromkeys(map(chr, range(0xFE00, 0xFE10)), ""),  # they choose between two looks of a character
    # The prefix of µg must not be read as milli.
    "µ": "mc", "μ": "mc", "ß": "ss",
    "Ð": "D", "ð": "d", "Þ": "Th", "þ": "th", "ẞ": "SS", "ĸ": "k", "Ŋ": "Ng", "ŋ": "ng", "ŉ": "'n", "Ə": "E", "ə": "e",
    "Ɣ": "G", "ɣ": "g", "Ƣ": "Gh", "ƣ": "gh", "Ʃ": "Sh", "ʃ": "sh", "Ʒ": "Z", "ʒ": "z", "Ǯ": "Z", "ǯ": "z", "Ɩ": "I",
    "ɩ": "i", "Ʊ": "U", "ʊ": "u", "Ʉ": "U", "ʉ": "u", "Ƿ": "W", "ƿ": "w", "Ȝ": "Y", "ȝ": "y", "Ƕ": "Hv", "Ɑ": "A",
    "ɑ": "a", "Ɂ": "'", "ɂ": "'", "ẟ": "d", "ẚ": "a'",
    "₡": "CRC", "₦": "NGN", "₩": "KRW", "₪": "ILS", "₫": "VND", "₭": "LAK", "₮": "MNT", "₱": "PHP", "₲": "PYG",
    "₴": "UAH", "₵": "GHS", "₸": "KZT", "₹": "INR", "₺": "TRY", "₼": "AZN", "₽": "RUB", "₾": "GEL", "฿": "THB",
}  # fmt: skip

#: What stands for a raised or lowered digit behind another digit, by the kind of Unicode's decomposition.
RAISED = {"<super": "^", "<sub": "_"}
#: By Unicode's categories: white space, and what cannot be seen.
BLANK = {"Zs": " ", "Zl": "\n", "Zp": "\n", "Cf": ""}
#: `LATIN SMALL LETTER L WITH STROKE`, `LATIN CAPITAL LIGATURE OE`: the letters that a name ends with.
LATIN = re.compile(r"LATIN (?:CAPITAL |SMALL )?(?:LETTER|LIGATURE)(?: [A-Z-]+)*? (?P<letters>[A-Z]{1,2})(?: WITH .+)?")
#: Combining classes of marks that cross a letter out or stand alone: those change what is said.
NO_ACCENT = (0, 1)


#: Between a whole number and a fraction in raised and lowered digits, which is no power.
MIXED_NUMBER = re.compile("(?<=[0-9])(?=[⁰¹²³⁴⁵⁶⁷⁸⁹]+⁄)")


class Folded(NamedTuple):
    text: str
    #: The characters that could not be written, each once.
    lost: str


class _Piece(NamedTuple):
    """What a character becomes. `joint` keeps it apart from letters and digits before it."""

    text: str
    joint: str = ""


def fold(text: str, alphabet: frozenset[str]) -> Folded:
    """Write a text in this alphabet. Where nothing is lost it says the same, and folding it again changes nothing."""
    written, joint, latin, lost = "", "", False, dict[str, None]()
    for char in _runs(alphabet).findall(
        unicodedata.normalize("NFC", MIXED_NUMBER.sub(" ", text.replace("\r\n", "\n")))
    ):
        if char[0] in alphabet:
            piece: _Piece | None = _Piece(char)
        elif latin and unicodedata.combining(char) not in NO_ACCENT:
            continue
        else:
            piece = _piece(char, alphabet)
        if piece is None:
            lost[char] = None
            continue
        latin = bool(piece.text) and piece.text[-1].isalpha() and not piece.joint
        if _run_together(written, piece, joint):
            written += piece.joint or " "
        written += piece.text
        joint = piece.joint if piece.text else joint
    return Folded(re.sub(" {2,}", " ", written).strip(), "".join(lost))


def _run_together(written: str, piece: _Piece, before: str) -> bool:
    """Whether a number or a currency would run into what is beside it. An exponent is kept apart from digits only."""
    joints = {before, piece.joint} - {""}
    if not joints or not written or not piece.text or (before == piece.joint and joints != {" "}):
        return False
    left, right = written[-1], piece.text[0]
    if " " in joints:
        return left.isalnum() and right.isalnum()
    return left.isdigit() and (right.isdigit() or (bool(piece.joint) and right in "+-"))


@lru_cache
def _runs(alphabet: frozenset[str]) -> re.Pattern[str]:
    """As much as is written as it is, or one other character."""
    return re.compile(f"[{re.escape(''.join(sorted(alphabet)))}]+|.", re.DOTALL)


@lru_cache(maxsize=4096)
def _piece(char: str, alphabet: frozenset[str]) -> _Piece | None:
    category = unicodedata.category(char)
    if char in alphabet:
        return _Piece(char)
    if char in PLAIN:
        return _Piece(PLAIN[char], " " if category == "Sc" else "")
    if category in BLANK:
        return _Piece(BLANK[category])
    if category == "Nd":
        return _Piece(str(unicodedata.decimal(char)))
    return _taken_apart(char, category, alphabet) or _named(char, category)


def _taken_apart(char: str, category: str, alphabet: frozenset[str]) -> _Piece | None:
    folded = [_piece(part, alphabet) for part in _parts(char)]
    text = "".join(piece.text for piece in folded if piece)
    if not text or None in folded:
        return None
    kind = unicodedata.decomposition(char).partition(">")[0]
    joint = "" if text[0].isalpha() else RAISED.get(kind, "")
    return _Piece(text, joint or (" " if category in {"No", "Nl"} else ""))


def _named(char: str, category: str) -> _Piece | None:
    name = LATIN.fullmatch(unicodedata.name(char, ""))
    return name and _Piece(name["letters"] if category == "Lu" else name["letters"].lower())


def _parts(char: str) -> Iterator[str]:
    """Take a character apart, without the accents of Latin letters; nothing where it is whole."""
    apart = unicodedata.normalize("NFKD", char)
    if apart == char:
        return
    latin = False
    for part in apart:
        if unicodedata.combining(part) in NO_ACCENT or not latin:
            yield part
            latin = unicodedata.name(part, "").startswith("LATIN")


ASCII = frozenset(map(chr, range(32, 127)))


def to_ascii(text: str) -> str:
    """Return the text without accents: `São João, nº 5` as `Sao Joao, no 5`. Text in another script is not changed."""
    folded = fold(text, ASCII)
    return text if folded.lost else folded.text

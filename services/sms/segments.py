"""
What a text is billed as, and how to make it cheaper.

One letter outside the GSM alphabet, and `ã` is one, turns 160 characters a segment into 70.
https://www.twilio.com/docs/glossary/what-is-gsm-7-character-encoding
"""

# ruff: noqa: RUF001 - look-alikes are the subject

import re
import unicodedata
from typing import NamedTuple

GSM_7, UCS_2 = "GSM_7", "UCS_2"

ALPHABET = frozenset(
    "@£$¥èéùìòÇ\nØø\rÅåΔ_ΦΓΛΩΠΨΣΘΞÆæßÉ !\"#¤%&'()*+,-./0123456789:;<=>?¡ABCDEFGHIJKLMNOPQRSTUVWXYZÄÖÑÜ§¿"
    "abcdefghijklmnopqrstuvwxyzäöñüà"
)
# Behind an escape, hence two septets each, which no segment's end may part.
EXTENSION = frozenset("\f^{}\\[~]|€")

# What Unicode does not take apart by itself.
PLAIN = str.maketrans({
    **dict.fromkeys("‐‑‒–—―−", "-"), **dict.fromkeys("‘’‚‛′´`", "'"), **dict.fromkeys("“”„‟″«»", '"'),
    **dict.fromkeys("•·▪", "-"), "×": "x", "ı": "i", "ł": "l", "Ł": "L", "đ": "d", "Đ": "D", "\t": " ",
})  # fmt: skip


class Size(NamedTuple):
    encoding: str
    segments: int


def fold(text: str) -> str:
    """
    Write it in plain letters: accents go, typography becomes its typewriter's form, emoji vanish.

    Letters of other scripts stay: a text without them would say something else.
    """
    apart = unicodedata.normalize("NFKD", unicodedata.normalize("NFC", text).translate(PLAIN))
    kept = "".join(filter(_survives, apart.replace("\N{FRACTION SLASH}", "/")))
    return re.sub(" {2,}", " ", unicodedata.normalize("NFC", kept)).strip()


def _survives(char: str) -> bool:
    return char in ALPHABET or char in EXTENSION or unicodedata.category(char).startswith(("L", "N"))


def composed(text: str) -> str:
    """Keep its letters, each as one character."""
    return unicodedata.normalize("NFC", text).strip()


def size(text: str) -> Size:
    if all(char in ALPHABET or char in EXTENSION for char in text):
        return Size(GSM_7, _segments([2 if char in EXTENSION else 1 for char in text], 160, 153))
    return Size(UCS_2, _segments([2 if ord(char) > 0xFFFF else 1 for char in text], 70, 67))


def _segments(widths: list[int], alone: int, joined: int) -> int:
    if sum(widths) <= alone:
        return 1
    segments, used = 1, 0
    for width in widths:
        if used + width > joined:
            segments, used = segments + 1, 0
        used += width
    return segments

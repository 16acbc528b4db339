"""
What a text is billed as.

One letter outside the GSM alphabet, and `ã` is one, turns 160 characters a segment into 70.
https://www.twilio.com/docs/glossary/what-is-gsm-7-character-encoding
"""

from typing import NamedTuple

GSM_7, UCS_2 = "GSM_7", "UCS_2"

ALPHABET = frozenset(
    "@£$¥èéùìòÇ\nØø\rÅåΔ_ΦΓΛΩΠΨΣΘΞÆæßÉ !\"#¤%&'()*+,-./0123456789:;<=>?¡ABCDEFGHIJKLMNOPQRSTUVWXYZÄÖÑÜ§¿"
    "abcdefghijklmnopqrstuvwxyzäöñüà"
)
# Behind an escape, hence two septets each, which no segment's end may part.
EXTENSION = frozenset("\f^{}\\[~]|€")
GSM = ALPHABET | EXTENSION


class Size(NamedTuple):
    encoding: str
    segments: int


def size(text: str) -> Size:
    if GSM.issuperset(text):
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

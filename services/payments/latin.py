"""Latin letters as ASCII, for what Stripe takes in ASCII only."""
# ruff: noqa: RUF001 - look-alikes are the subject

import unicodedata

# Letters and signs that Unicode's compatibility decomposition does not take apart.
_PLAIN = str.maketrans({
    "ß": "ss", "ẞ": "SS", "æ": "ae", "Æ": "AE", "œ": "oe", "Œ": "OE", "ø": "o", "Ø": "O", "đ": "d", "Đ": "D",
    "ð": "d", "Ð": "D", "þ": "th", "Þ": "Th", "ł": "l", "Ł": "L", "ħ": "h", "Ħ": "H", "ı": "i", "ŋ": "ng", "Ŋ": "NG",
    "ŧ": "t", "Ŧ": "T", "ƒ": "f", "ə": "e", "Ə": "E",
    **dict.fromkeys("‐‑‒–—―−", "-"), **dict.fromkeys("‘’‚‛′´`", "'"), **dict.fromkeys("“”„‟″«»", '"'), "№": "No",
})  # fmt: skip


def to_ascii(text: str) -> str:
    """Return the text without accents: `São João, nº 5` as `Sao Joao, no 5`. Other scripts stay as they are."""
    apart = unicodedata.normalize("NFKD", text.translate(_PLAIN))
    return "".join(char for char in apart if not unicodedata.combining(char)).translate(_PLAIN)

"""Latin letters as ASCII, for what Stripe takes in ASCII only."""

from services.brazil.folding import fold

ASCII = frozenset(map(chr, range(32, 127)))


def to_ascii(text: str) -> str:
    """Return the text without accents: `São João, nº 5` as `Sao Joao, no 5`. One of another script stays as it is."""
    folded = fold(text, ASCII)
    return text if folded.lost else folded.text

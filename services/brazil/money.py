"""Money in pt-BR words, from the minor units that Stripe counts."""

from decimal import Decimal

# What Stripe counts in other units than hundredths; ISK and UGX, which have no hundredths, are counted in them.
NO_DECIMALS = frozenset(
    ["BIF", "CLP", "DJF", "GNF", "JPY", "KMF", "KRW", "MGA", "PYG", "RWF", "VND", "VUV", "XAF", "XOF", "XPF"]
)
THREE_DECIMALS = frozenset(["BHD", "JOD", "KWD", "OMR", "TND"])


def reais(amount_minor: int, currency: str) -> str:
    """R$ 150,00, or another currency the way Brazil writes it."""
    from babel.numbers import format_currency  # noqa: PLC0415 - the payments image has no babel

    decimals = 0 if currency in NO_DECIMALS else 3 if currency in THREE_DECIMALS else 2
    amount = Decimal(amount_minor).scaleb(-decimals)
    return format_currency(amount, currency, locale="pt_BR").replace("\xa0", " ")

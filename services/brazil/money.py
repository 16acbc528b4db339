"""Money in pt-BR words, from the minor units that Stripe counts."""

from decimal import Decimal

from services.chassis.currencies import NO_DECIMALS, THREE_DECIMALS


def reais(amount_minor: int, currency: str) -> str:
    """R$ 150,00, or another currency the way Brazil writes it."""
    from babel.numbers import format_currency  # noqa: PLC0415 - the payments image has no babel

    decimals = 0 if currency in NO_DECIMALS else 3 if currency in THREE_DECIMALS else 2
    amount = Decimal(amount_minor).scaleb(-decimals)
    return format_currency(amount, currency, locale="pt_BR").replace("\xa0", " ")

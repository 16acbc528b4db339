"""Money in pt-BR words, from the minor units that Stripe counts."""

import re
from decimal import Decimal

from services.chassis.currencies import NO_DECIMALS, THREE_DECIMALS


def reais(amount_minor: int, currency: str) -> str:
    """
    Return R$ 150,00, or another currency the way Brazil writes it.

    The decimals are those that Stripe counts: by custom 12,50 dinars of Serbia would be written as 13.
    """
    from babel.numbers import format_currency  # noqa: PLC0415 - the payments image has no babel

    decimals = 0 if currency in NO_DECIMALS else 3 if currency in THREE_DECIMALS else 2
    amount, pattern = Decimal(amount_minor).scaleb(-decimals), "¤ #,##0." + "0" * decimals
    return re.sub(r"\s", " ", format_currency(amount, currency, pattern, locale="pt_BR", currency_digits=False))

"""CPF and CNPJ."""

from stdnum.br import cnpj, cpf
from stdnum.exceptions import ValidationError

from services.chassis.violations import InvalidValueError, Rule


def tax_id(text: str) -> str:
    """Return a CPF or CNPJ without punctuation; raise InvalidValueError unless its check digits are right."""
    kind = cpf if len(cpf.compact(text)) == 11 else cnpj
    try:
        return str(kind.validate(text))
    except ValidationError:
        raise InvalidValueError(Rule.NOT_A_TAX_ID) from None

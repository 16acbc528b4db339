"""
The rules for fields, each with a message for developers (English) and one for people (pt-BR).

A rule's name is FieldViolation.reason; its messages are FieldViolation.description and localized_message.
"""

from enum import Enum
from typing import NamedTuple


class Violation(NamedTuple):
    """`field` is the path in the request, as the contract spells it: appointment.start_time."""

    field: str
    description: str
    reason: str = ""
    localized: str = ""


class Rule(Enum):
    """The messages may hold placeholders such as `{limit}`, which `at` fills."""

    # Any field.
    REQUIRED = "is required", "Preencha este campo."
    UNKNOWN_FIELD = "is not a field of this request", "Este campo não existe."
    GIVEN_TWICE = "must be given once", "Este campo foi enviado duas vezes."
    EXCLUDED = "must be left out when {other} is given", "Não preencha este campo junto com {other}."
    DIFFERENT = "must be equal to {other}", "Este campo deve ser igual a {other}."
    KEY_REUSED = "differs from the first request", "Este campo mudou desde o primeiro pedido."
    WRONG_TYPE = "must be {form}", "O formato deste campo está errado."
    MALFORMED_MESSAGE = "must be the message that this method takes", "O pedido não pode ser lido."
    REFUSED_BY_PROVIDER = "was refused by {provider}: {code}", "Este campo foi recusado. Confira e tente de novo."
    MORE = "and {count} more fields are wrong", "Há mais {count} campos incorretos."
    # Texts.
    TOO_SHORT = "must have at least {limit} characters", "Escreva pelo menos {limit} caracteres."
    TOO_LONG = "must have at most {limit} characters, not {length}", "Escreva no máximo {limit} caracteres."
    NOT_PRINTABLE = "must hold printable characters only", "Este campo contém caracteres que não podem ser usados."
    ONE_LINE = "must be one line", "Escreva em uma só linha."
    # Numbers, times, choices.
    OUT_OF_RANGE = "must be between {min} and {max}", "O valor deve estar entre {min} e {max}."
    NOT_POSITIVE = "must be greater than zero", "O valor deve ser maior que zero."
    TIME_OUT_OF_RANGE = (
        "must be a time between the years {min} and {max}",
        "A data deve estar entre os anos de {min} e {max}.",
    )
    DURATION_OUT_OF_RANGE = (
        "must be longer than zero and at most {days} days",
        "O prazo deve ser maior que zero e de no máximo {days} dias.",
    )
    END_BEFORE_START = "must be after start_time", "O fim deve ser depois do início."
    NOT_BEFORE_START = (
        "must be at least a minute before the appointment's start",
        "O envio deve ser pelo menos um minuto antes do início da consulta.",
    )
    APPOINTMENT_OVER = "must be of an appointment that is not over", "Esta consulta já passou."
    NOT_A_CHOICE = "must be one of {choices}", "Escolha uma das opções: {choices}."
    TOO_MANY_ENTRIES = "must have at most {limit} entries, not {length}", "Envie no máximo {limit} itens."
    # Money and people.
    NOT_A_CURRENCY = (
        "must be the ISO 4217 code, in upper case, of a currency that Stripe takes payments in",
        "A moeda não é válida.",
    )
    NOT_A_MULTIPLE = "must be a multiple of {step} for {currency}", "O valor em {currency} deve ser múltiplo de {step}."
    NOT_BRL = "must be BRL for PIX and BOLETO", "Pix e boleto só aceitam reais (BRL)."
    NO_MANUAL_CAPTURE = "must be AUTOMATIC for PIX and BOLETO", "Pix e boleto não permitem captura manual."
    AUTOMATIC_STANDS_ALONE = "must be AUTOMATIC alone or without it", "Escolha o modo automático ou formas específicas."
    NOT_A_TAX_ID = "must be a CPF or CNPJ with right check digits", "O CPF ou CNPJ não é válido. Confira os números."
    NOT_LATIN = "must be in Latin letters for BOLETO", "Escreva em letras latinas para pagar com boleto."
    NOT_A_COUNTRY = "must be an ISO 3166-1 code of two letters in upper case", "O país não é válido."
    NOT_BRAZIL = "must be BR for BOLETO", "O boleto precisa de um endereço no Brasil."
    NOT_A_STATE = "must be the two letters of a Brazilian state, such as SP", "Informe a UF, como SP."
    NOT_A_CEP = "must be a CEP of 8 digits, such as 01310-100", "O CEP não é válido. Confira os 8 números."
    NOTHING_EXPIRES = "must be left out unless methods names PIX or BOLETO", "Só Pix e boleto têm prazo de pagamento."
    NOT_A_PIX_EXPIRY = "must be 60 seconds to 14 days in whole seconds for PIX", "Um Pix vale de 60 segundos a 14 dias."
    NOT_A_BOLETO_EXPIRY = "must be 1 to 60 whole days for BOLETO", "Um boleto vale de 1 a 60 dias inteiros."
    NOT_A_LANGUAGE = "must be a BCP 47 language tag such as pt-BR", "O idioma não é válido."
    NOT_AN_EMAIL_ADDRESS = "must be an email address", "Este e-mail não é válido. Confira."
    NOT_A_TIME_ZONE = (
        "must be the name of a place's time zone in the IANA database, such as {example}",
        "O fuso horário não é válido. Use um como {example}.",
    )
    NO_RECIPIENT = "must have an email or a phone", "Informe um e-mail ou um telefone."
    # Phone numbers.
    NOT_A_PHONE_NUMBER = "must be a phone number that exists", "Este telefone não existe. Confira o número com DDD."
    NOT_DIGITS_ONLY = (
        "must be one number, written in digits, spaces and + ( ) [ ] - . only",
        "Escreva um só telefone, com números, espaços e os sinais + ( ) [ ] - . somente.",
    )
    BEGINS_WITH_00 = (
        "must begin with + and the country code instead of 00",
        "Escreva + e o código do país no lugar de 00.",
    )
    NOT_A_MOBILE_NUMBER = "must be a mobile number, which takes texts", "Informe um celular, que recebe SMS."
    NINE_MISSING = "must have a 9 after the area code of a mobile number", "Falta o 9 depois do DDD."
    HAS_EXTENSION = "must be a number without an extension", "Informe o telefone sem ramal."
    COUNTRY_NOT_SERVED = "must be a number of {regions}", "Não enviamos para números deste país."
    # Messages.
    NOT_A_CODE = "must be 4 to 10 ASCII letters or digits", "O código deve ter de 4 a 10 letras ou números."
    NOT_WRITABLE = (
        "must not hold {characters} (not in GSM-7), or be sent with keep_accents",
        "Um SMS simples não pode conter {characters}. Retire estes caracteres.",
    )
    # Keys, entries, events.
    NOT_A_KEY = "must be 1 to 255 printable characters", "A chave do pedido deve ter de 1 a 255 caracteres."
    RESERVED_KEY = "must not begin with {prefix}", "Este identificador começa com um prefixo reservado."
    NOT_A_PAGE_TOKEN = (
        "must be the next_page_token of a response to the same request",
        "A página pedida não é desta lista.",
    )
    NOT_A_CURSOR = "must be a cursor that this service has given", "O ponto de partida não é válido."
    NOT_A_METADATA_KEY = (
        "must have keys of 1 to 40 printable characters without square brackets",
        "O nome de um dado adicional não é válido.",
    )
    RESERVED_METADATA_KEY = "must have a key that does not begin with topsmile_", "Este nome é reservado."
    NOT_A_METADATA_VALUE = (
        "must be at most 500 printable characters",
        "Um dado adicional deve ter no máximo 500 caracteres.",
    )
    WRONG_COUNT = "must have 1 to {max} entries, not {count}", "Envie de 1 a {max} itens."
    TOO_MANY_BYTES = "must have at most {limit} bytes together", "Os dados são grandes demais."

    def __init__(self, english: str, portuguese: str) -> None:
        self.english = english
        self.portuguese = portuguese

    def at(self, field: str, **values: object) -> Violation:
        """Return the violation of this rule by a field."""
        return Violation(field, self.english.format(**values), self.name, self.portuguese.format(**values))


class InvalidValueError(ValueError):
    """A broken rule, raised where the path of the field is not known."""

    def __init__(self, rule: Rule, **values: object) -> None:
        super().__init__(rule.english.format(**values))
        self.rule = rule
        self.values = values

"""Which time zones the owner of a phone number may be in."""

import phonenumbers
from phonenumbers import timezone

# Brazil's 67 area codes. Of our own, because phonenumbers has 81 (Recife) on Fernando de Noronha and 93 and 94 (Pará)
# in Manaus. 81 leaves Noronha's few thousand people an hour off; 97 is Amazonas with its west, which is an hour behind.
AREA_CODES = {
    "America/Sao_Paulo": (
        "11 12 13 14 15 16 17 18 19 21 22 24 27 28 31 32 33 34 35 37 38 41 42 43 44 45 46 47 48 49 51 53 54 55 61 62 64"
    ),
    "America/Araguaina": "63",
    "America/Cuiaba": "65 66",
    "America/Campo_Grande": "67",
    "America/Rio_Branco": "68",
    "America/Porto_Velho": "69",
    "America/Bahia": "71 73 74 75 77",
    "America/Maceio": "79 82",
    "America/Recife": "81 87",
    "America/Fortaleza": "83 84 85 86 88 89 98 99",
    "America/Belem": "91 94 96",
    "America/Manaus": "92 97",
    "America/Eirunepe": "97",
    "America/Santarem": "93",
    "America/Boa_Vista": "95",
}


def zones_of(number: str) -> list[str]:
    """Return the IANA names of all zones that an E.164 number leaves open; none where nothing is known."""
    if number.startswith("+55"):
        return [zone for zone, codes in AREA_CODES.items() if number[3:5] in codes.split()]
    zones = timezone.time_zones_for_number(phonenumbers.parse(number))
    return [zone for zone in zones if zone != timezone.UNKNOWN_TIMEZONE]

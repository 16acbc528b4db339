"""
The currencies in which Stripe takes payments, and their minor units: https://docs.stripe.com/currencies

Stripe's minor units differ from ISO 4217 for ISK and UGX. Both have no decimals, but Stripe counts hundredths.
"""


def _codes(text: str) -> frozenset[str]:
    return frozenset(text.split())


TWO_DECIMALS = _codes(
    """
    AED AFN ALL AMD ANG AOA ARS AUD AWG AZN BAM BBD BDT BGN BMD BND BOB BRL BSD BWP BYN BZD CAD CDF CHF CNY COP CRC CVE
    CZK DKK DOP DZD EGP ETB EUR FJD FKP GBP GEL GIP GMD GTQ GYD HKD HNL HTG HUF IDR ILS INR ISK JMD KES KGS KHR KYD KZT
    LAK LBP LKR LRD LSL MAD MDL MKD MMK MNT MOP MUR MVR MWK MXN MYR MZN NAD NGN NIO NOK NPR NZD PAB PEN PGK PHP PKR PLN
    QAR RON RSD RUB SAR SBD SCR SEK SGD SHP SLE SOS SRD STD SZL THB TJS TOP TRY TTD TWD TZS UAH UGX USD UYU UZS WST XCD
    XCG YER ZAR ZMW
    """
)
NO_DECIMALS = _codes("BIF CLP DJF GNF JPY KMF KRW MGA PYG RWF VND VUV XAF XOF XPF")
THREE_DECIMALS = _codes("BHD JOD KWD OMR TND")
CURRENCIES = TWO_DECIMALS | NO_DECIMALS | THREE_DECIMALS

# An amount must be a multiple of these minor units.
_STEPS = {"ISK": 100, "UGX": 100, **dict.fromkeys(THREE_DECIMALS, 10)}


def step_of(currency: str) -> int:
    """Return the minor units of which an amount must be a multiple."""
    return _STEPS.get(currency, 1)

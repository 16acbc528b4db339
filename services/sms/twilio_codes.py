"""
What Twilio's error codes mean: https://www.twilio.com/docs/api/errors

One table for the answers to a request and for the status callbacks after it. A code that is not here is final, and an
alarm: Twilio adds codes, and somebody has to find out whose fault a new one is.
"""

from collections.abc import Mapping

import structlog

from services.chassis import metrics
from services.chassis.errors import (
    CredentialsRefused,
    ExternalServiceError,
    ProviderRefusedInput,
    ProviderRejected,
    ProviderThrottled,
)
from services.messaging.provider import OptedOut

CODES: Mapping[int, type[ExternalServiceError]] = {
    10001: CredentialsRefused,  # the account is not active
    14107: ProviderThrottled,
    20003: CredentialsRefused,
    20005: CredentialsRefused,  # the account is suspended
    20403: CredentialsRefused,
    20404: CredentialsRefused,  # no such account: nothing else is named in our URLs
    20429: ProviderThrottled,
    21211: ProviderRefusedInput,  # not a phone number
    21212: CredentialsRefused,  # our own number is none: our configuration, as the next ones
    21408: ProviderRejected,  # not to that country
    21602: ProviderRefusedInput,  # no body
    21603: CredentialsRefused,
    21606: CredentialsRefused,
    21608: ProviderRejected,  # a trial account texts verified numbers only
    21609: CredentialsRefused,  # our PUBLIC_URL is none for Twilio
    21610: OptedOut,
    21611: ProviderThrottled,  # our number's own queue is full
    21612: ProviderRejected,  # cannot be reached from our number
    21614: ProviderRefusedInput,  # not a mobile number
    21617: ProviderRefusedInput,  # too long
    21635: ProviderRefusedInput,  # a landline
    21659: CredentialsRefused,  # our number is not ours, or cannot text: and the next ones
    21660: CredentialsRefused,
    21661: CredentialsRefused,
    30001: ProviderThrottled,  # the account's own queue is full
    30002: CredentialsRefused,  # suspended after it took the text
    30003: ProviderRejected,  # the phone is off or away
    30004: ProviderRejected,  # the recipient blocks texts
    30005: ProviderRefusedInput,  # no such number
    30006: ProviderRefusedInput,  # a landline
    30007: ProviderRejected,  # filtered by the carrier
    30008: ProviderRejected,  # the carrier does not say
    30024: CredentialsRefused,  # our sender is not provisioned
    30034: CredentialsRefused,  # our number is not registered for such texts
    **dict.fromkeys(range(35110, 35120), ProviderRefusedInput),
}

#: Refusals of one text that say something about the account: it may not text a country, or is on trial.
LIMITS = frozenset([21408, 21608])

log = structlog.get_logger()


def alarm(code: int, kind: type[ExternalServiceError] | None) -> None:
    """Tell operators of a refusal that is our account's fault, or whose code is not known (`kind` None)."""
    if kind is None or kind is CredentialsRefused or code in LIMITS:
        what = "error_code" if kind is None else "account_refused"
        metrics.provider_unexpected_total.labels("twilio", what).inc()
        log.error("provider.unexpected", service="twilio", what=what, code=code)

"""Which keys and which addresses the payments service starts with."""

from typing import Any

import pytest
from pydantic import ValidationError

from services.payments.settings import Settings


def settings(**changes: Any) -> Settings:
    given = {"listen": "127.0.0.1:0", "operations_listen": "127.0.0.1:0", "database_url": "sqlite:///p.db"}
    return Settings.model_validate({**given, "stripe_secret_key": "sk_test_1", **changes})


@pytest.mark.parametrize(
    "changes",
    [
        {"stripe_secret_key": "sk_live_1", "stripe_api_base": "http://127.0.0.1:8090"},
        {"stripe_secret_key": "rk_live_1", "stripe_api_base": "https://api.stripe.com.example"},
        {"stripe_secret_key": "pk_test_1"},
        {"stripe_secret_key": "whsec_1"},
        {"stripe_api_base": "127.0.0.1:8090"},
        {"stripe_per_second": 0},
    ],
)
def test_setting_that_could_charge_wrongly_is_refused_without_its_key(changes: dict[str, Any]) -> None:
    with pytest.raises(ValidationError) as refused:
        settings(**changes)

    text = str(refused.value.errors(include_input=False))
    assert str(changes.get("stripe_secret_key", "sk_test_1")) not in text.replace("sk_live_,", "")


def test_live_key_needs_stripe_and_test_key_does_not() -> None:
    assert settings(stripe_secret_key="rk_live_1").livemode
    assert not settings(stripe_api_base="http://127.0.0.1:8090/").livemode
    assert settings(stripe_api_base="http://127.0.0.1:8090/").stripe_api_base == "http://127.0.0.1:8090"

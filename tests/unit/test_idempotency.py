from __future__ import annotations

import hashlib
import hmac

import pytest
from pydantic import SecretStr

from services.chassis.errors import AlreadyExists
from services.chassis.rpc.idempotency import Fingerprints

REQUEST = {"payer.tax_id": "52998224725", "amount.amount_minor": 15000, "metadata": [("unit", "centro")], "note": ""}


def keys(*names: str) -> Fingerprints:
    return Fingerprints([SecretStr(f"{name} of sixteen or more") for name in names])


@pytest.mark.parametrize(
    ("change", "differing"),
    [
        ({"payer.tax_id": "11144477735"}, ["payer.tax_id"]),
        ({"amount.amount_minor": 1500, "metadata": []}, ["amount.amount_minor", "metadata"]),
        ({"description": "Limpeza"}, ["description"]),
        ({"note": "", "added_next_year": False}, []),
    ],
)
@pytest.mark.parametrize("first", ["new", "old", "oldest"])
def test_repeated_request_is_compared_under_the_key_of_its_fingerprint(
    first: str, change: dict[str, object], differing: list[str]
) -> None:
    stored = keys(first)(REQUEST).stored
    repeated = keys("new", "old", "oldest")({**REQUEST, **change})

    assert repeated.differing(stored) == differing
    assert stored.startswith(repeated.stored.split(":")[0]) is (first == "new")


@pytest.mark.parametrize("change", [{}, {"payer.tax_id": "11144477735"}, {"amount.amount_minor": 1}])
def test_fingerprint_of_a_removed_key_refuses_no_request(change: dict[str, object]) -> None:
    repeated = keys("new")({**REQUEST, **change})

    assert repeated.differing(keys("gone")(REQUEST).stored) == []
    assert repeated.differing(Fingerprints()(REQUEST).stored) == []
    assert repeated.differing('{"payer.tax_id":"0123"}') == []  # as it was before keys had names


def test_another_request_under_a_key_is_refused_with_the_differing_fields() -> None:
    fingerprints = keys("new")

    fingerprints(REQUEST).check(fingerprints(REQUEST).stored)
    with pytest.raises(AlreadyExists) as refusal:
        fingerprints({**REQUEST, "payer.tax_id": "11144477735"}).check(fingerprints(REQUEST).stored)
    assert refusal.value.reason == "IDEMPOTENCY_KEY_REUSED"
    assert [violation.field for violation in refusal.value.violations] == ["payer.tax_id"]


@pytest.mark.parametrize("guessed", ["topsmile", "", "0123456789abcdef"])
def test_cpf_cannot_be_found_without_the_key(guessed: str) -> None:
    for stored in (Fingerprints()(REQUEST).stored, keys("new")(REQUEST).stored):
        found = hmac.new(guessed.encode(), repr("52998224725").encode(), hashlib.sha256).hexdigest()

        assert found[:24] not in stored
        assert "52998224725" not in stored


def test_processes_without_a_key_have_different_random_keys() -> None:
    assert Fingerprints()(REQUEST).stored != Fingerprints()(REQUEST).stored

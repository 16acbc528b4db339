"""Signatures: what proves an event, and that nothing whatever makes the proof fail in another way than refusing."""

import base64
import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.settings import parse_public_keys
from gateway.signatures import (
    BadSignature,
    TwilioSecrets,
    verify_body_hash,
    verify_sendgrid,
    verify_stripe,
    verify_twilio,
)
from tests.fakes import signing

NOW = 1_770_000_000
BODY = b'{"id":"evt_1"}\r\n'
SECRETS = [b"whsec_new", b"whsec_old"]
KEY, OTHER = signing.SendGridKey(), signing.SendGridKey()
KEYS = parse_public_keys(f"{OTHER.public},{KEY.public}")
URL = "https://hooks.clinic.example/webhooks/twilio/status?attempt=1"


def stripe(header: bytes, body: bytes = BODY, now: float = NOW) -> bool:
    try:
        verify_stripe(header, body, SECRETS, now)
    except BadSignature:
        return False
    return True


def sendgrid(signature: bytes, moment: bytes, body: bytes = BODY, now: float = NOW) -> bool:
    try:
        verify_sendgrid(signature, moment, body, keys=KEYS, now=now, window=26 * 3600.0)
    except BadSignature:
        return False
    return True


def twilio(signature: bytes, form: list[tuple[str, str]], url: str = URL, settings: bytes = b"") -> bool:
    try:
        verify_twilio(
            signature, settings, url, form, TwilioSecrets([b"new", b"old"], {"key_1": b"one", "key_2": b"two"})
        )
    except BadSignature:
        return False
    return True


def header(secret: str = "whsec_new", moment: int = NOW) -> bytes:
    return b"t=%d,v1=%s" % (moment, signing.stripe(BODY, secret, moment).encode())


@pytest.mark.parametrize("secret", ["whsec_new", "whsec_old"])
def test_stripe_may_sign_with_any_secret_of_ours(secret: str) -> None:
    assert stripe(header(secret))


def test_one_of_several_v1_is_enough() -> None:
    good = signing.stripe(BODY, "whsec_old", NOW).encode()
    assert stripe(b"t=%d,v1=%s,v1=%s,v0=x" % (NOW, b"0" * 64, good))
    assert not stripe(b"t=%d,v1=%s,v0=%s" % (NOW, b"0" * 64, good))


@pytest.mark.parametrize(("age", "taken"), [(0, True), (299, True), (301, False), (-299, True), (-301, False)])
def test_stripe_s_clock_and_ours_may_differ_by_five_minutes_both_ways(age: int, taken: bool) -> None:
    assert stripe(header(), now=NOW + age) is taken


def test_a_changed_byte_is_refused() -> None:
    assert not stripe(header(), BODY.strip())


@pytest.mark.parametrize(
    "garbage",
    [b"", b"t=", b"t=1", b"v1=a", b"t=x,v1=a", b"t=\xb2,v1=\xff", b"t=1,t=2,v1=a", b"t=-1,v1=a", b"t=" + b"9" * 5000],
)
def test_a_garbled_stripe_header_is_refused(garbage: bytes) -> None:
    assert not stripe(garbage)


@given(st.binary(), st.binary())
def test_stripe_s_proof_only_ever_refuses(garbage: bytes, body: bytes) -> None:
    assert not stripe(garbage, body)


@given(st.text(alphabet="tv10=, \xff9ab", max_size=60))
def test_stripe_s_proof_only_ever_refuses_what_looks_like_a_header(garbage: str) -> None:
    assert not stripe(garbage.encode("latin-1"))


def sendgrid_header(key: signing.SendGridKey = KEY, body: bytes = BODY, moment: int = NOW) -> tuple[bytes, bytes]:
    signature, moment_text = key.header(body, moment).values()
    return signature.encode(), moment_text.encode()


def test_sendgrid_may_sign_with_any_key_of_ours() -> None:
    assert sendgrid(*sendgrid_header(KEY))
    assert sendgrid(*sendgrid_header(OTHER))
    assert not sendgrid(*sendgrid_header(signing.SendGridKey()))


def test_the_trailing_line_break_is_signed_too() -> None:
    assert not sendgrid(*sendgrid_header(), BODY.strip())


def test_the_timestamp_is_signed_too() -> None:
    signature, _ = sendgrid_header()
    assert not sendgrid(signature, str(NOW + 1).encode())


@pytest.mark.parametrize(("age", "taken"), [(25 * 3600, True), (27 * 3600, False), (-301, False)])
def test_sendgrid_repeats_for_a_day_and_no_longer(age: int, taken: bool) -> None:
    assert sendgrid(*sendgrid_header(), now=NOW + age) is taken


@given(st.binary(), st.one_of(st.binary(), st.just(str(NOW).encode())), st.binary())
def test_sendgrid_s_proof_only_ever_refuses(signature: bytes, moment: bytes, body: bytes) -> None:
    assert not sendgrid(signature, moment, body)
    assert not sendgrid(base64.b64encode(signature), moment, body)


@pytest.mark.parametrize("token", ["new", "old"])
def test_twilio_may_sign_with_any_token_of_ours_blank_values_included(token: str) -> None:
    body = b"SmsSid=SM1&MessageStatus=sent&Empty=&From=%2B55"
    signature = signing.twilio_header(URL, body, token)["X-Twilio-Signature"].encode()
    form = [("MessageStatus", "sent"), ("From", "+55"), ("SmsSid", "SM1"), ("Empty", "")]

    assert twilio(signature, form)
    assert not twilio(signature, form[:-1])
    assert not twilio(signature, form, URL + "0")


def test_twilio_may_write_the_port_or_leave_it_out() -> None:
    signed = signing.twilio_header("https://a.example:443/x", b"", "new")["X-Twilio-Signature"].encode()
    assert twilio(signed, [], "https://a.example/x")
    signed = signing.twilio_header("https://a.example/x", b"", "new")["X-Twilio-Signature"].encode()
    assert twilio(signed, [], "https://a.example:8443/x")


@pytest.mark.parametrize(
    ("key", "secret", "algorithm", "taken"),
    [
        ("key_1", "one", "HMAC_SHA256", True),
        ("key_2", "two", "HMAC_SHA256", True),
        ("key_1", "two", "HMAC_SHA256", False),
        ("key_3", "one", "HMAC_SHA256", False),
        ("key_1", "new", "HMAC_SHA256", False),
        ("key_1", "one", "HMAC_SHA512", False),
        ("key_1", "one", "HMAC_SHA1", False),
        ("", "new", "HMAC_SHA256", False),
    ],
)
def test_a_shared_key_signs_with_sha_256_under_an_id_of_ours(
    key: str, secret: str, algorithm: str, taken: bool
) -> None:
    signature, settings = signing.twilio_shared(URL, b"SmsSid=SM1&Empty=", key, secret, algorithm)
    assert twilio(signature, [("SmsSid", "SM1"), ("Empty", "")], settings=settings) is taken
    assert not twilio(signature, [("SmsSid", "SM2"), ("Empty", "")], settings=settings)
    assert not twilio(signature, [("SmsSid", "SM1"), ("Empty", "")])


@pytest.mark.parametrize(
    ("hashes", "reason"),
    [([], "BODY_NOT_SIGNED"), (["a", "a"], "BODY_NOT_SIGNED"), (["0" * 64], "BODY_MISMATCH"), (["é"], "BODY_MISMATCH")],
)
def test_a_body_that_its_address_does_not_name_is_refused(hashes: list[str], reason: str) -> None:
    with pytest.raises(BadSignature) as refused:
        verify_body_hash(hashes, BODY)
    assert refused.value.reason == reason
    verify_body_hash([hashlib.sha256(BODY).hexdigest().upper()], BODY)


@given(st.binary(), st.binary(), st.lists(st.text()))
def test_a_shared_key_s_proof_and_a_body_s_only_ever_refuse(
    signature: bytes, settings: bytes, hashes: list[str]
) -> None:
    assert not twilio(signature, [], settings=settings)
    with pytest.raises(BadSignature):
        verify_body_hash(hashes, BODY)


@given(st.binary(), st.lists(st.tuples(st.text(), st.text())))
def test_twilio_s_proof_only_ever_refuses(signature: bytes, form: list[tuple[str, str]]) -> None:
    form = [(name, value) for name, value in form if (name + value).isprintable()]
    assert not twilio(signature, form)

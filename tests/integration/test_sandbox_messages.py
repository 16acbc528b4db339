import base64
import hashlib
import hmac
import io
import json
import time
from typing import Any
from urllib.parse import parse_qsl

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_der_public_key

from tests.fakes.sandbox_bench import ACCOUNT, BASIC, TWILIO_TOKEN, Bench, mail
from tests.fakes.webhook_receiver import Received

CALLBACK = "https://public.example/webhooks/twilio/status?attempt=a%2F1"


def to(address: str) -> dict[str, Any]:
    return mail(personalizations=[{"to": [{"email": address}]}])


def mail_events(received: list[Received]) -> list[dict[str, Any]]:
    return [event for webhook in received for event in json.loads(webhook.body)]


def statuses(received: list[Received]) -> list[str]:
    return [dict(parse_qsl(webhook.body.decode()))["MessageStatus"] for webhook in received]


async def test_a_mail_is_accepted_and_its_delivery_told(bench: Bench) -> None:
    answer = await bench.send_mail(mail())
    received = await bench.receiver.wait_for(lambda got: len(got) == 2)

    id = answer.headers["X-Message-Id"]
    events = mail_events(received)
    assert (answer.status, answer.body) == (202, b"")
    assert [event["event"] for event in events] == ["processed", "delivered"]
    assert {event["email_id"] for event in events} == {"eml_1"}
    assert all(event["sg_message_id"].startswith(f"{id}.filter") for event in events)


async def test_sendgrids_signature_covers_the_timestamp_and_the_trailing_line_end(bench: Bench) -> None:
    await bench.send_mail(mail())
    webhook = (await bench.receiver.wait_for(lambda got: len(got) == 1))[0]
    keys = (await bench.ask("GET", "/_sandbox/keys")).json

    public = load_der_public_key(base64.b64decode(keys["sendgrid_public_key"]))
    assert isinstance(public, ec.EllipticCurvePublicKey)
    signature = base64.b64decode(webhook.headers["X-Twilio-Email-Event-Webhook-Signature"])
    seconds = webhook.headers["X-Twilio-Email-Event-Webhook-Timestamp"]
    public.verify(signature, seconds.encode() + webhook.body, ec.ECDSA(hashes.SHA256()))
    assert webhook.body.endswith(b"]\r\n")


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("bounced+ana@example.com", ["processed", "bounce"]),
        ("complained@resend.dev", ["processed", "delivered", "spamreport"]),
        ("suppressionlist@simulator.amazonses.com", ["dropped"]),
        ("deferred@example.com", ["processed", "deferred"]),
        ("noreceipt@example.com", ["processed"]),
    ],
)
async def test_a_magic_address_has_its_fate(bench: Bench, address: str, expected: list[str]) -> None:
    await bench.send_mail(to(address))
    received = await bench.receiver.wait_for(lambda got: len(got) == len(expected))

    assert [event["event"] for event in mail_events(received)] == expected


async def test_an_early_receipt_comes_before_the_answer(bench: Bench) -> None:
    await bench.send_mail(to("early@example.com"))

    assert {event["event"] for event in mail_events(bench.receiver.received)} == {"processed", "delivered"}


async def test_a_late_receipt_comes_twice_when_its_day_is_over(bench: Bench) -> None:
    await bench.send_mail(to("late@example.com"))
    await bench.receiver.wait_for(lambda got: len(got) == 1)
    await bench.ask("POST", "/_sandbox/webhooks/flush")
    received = await bench.receiver.wait_for(lambda got: len(got) == 3)

    events = mail_events(received)
    assert [event["event"] for event in events] == ["processed", "delivered", "delivered"]
    assert events[1]["timestamp"] - events[0]["timestamp"] == pytest.approx(86_400, abs=2)


ICS = {"filename": "a.ics", "content": "QQ=="}


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"from": {}}, "from.email"),
        ({"personalizations": []}, "personalizations"),
        ({"personalizations": [{"to": []}]}, "personalizations.0.to"),
        ({"personalizations": [{"to": [{"email": "no"}]}]}, "personalizations.0.to.0.email"),
        ({"personalizations": [{"to": ["ana@example.com"]}]}, "personalizations.0.to.0.email"),
        ({"subject": ""}, "subject"),
        ({"content": []}, "content"),
        ({"custom_args": {"n": 1}}, "personalizations.0.custom_args.n"),
        ({"custom_args": "text"}, "custom_args"),
        ({"headers": {"Received": "x"}}, "headers.Received"),
        ({"send_at": int(time.time()) + 80 * 3600}, "send_at"),
        ({"attachments": [{"filename": "a.ics", "content": "§"}]}, "attachments.0.content"),
        ({"attachments": [ICS | {"type": "text/calendar; charset=utf-8"}]}, "attachments.0.type"),
        ({"attachments": [ICS | {"type": "text/calendar; method=REQUEST; charset=utf-8"}]}, "attachments.0.type"),
        ({"attachments": [ICS | {"type": "text/calendar\r\nBcc: x"}]}, "attachments.0.type"),
        ({"content": [{"type": "text/plain; charset=utf-8", "value": "x"}]}, "content.0.type"),
        ({"personalizations": [{"to": [{"email": "ana@clínica.com.br"}]}]}, "personalizations.0.to.0.email"),
        ({"from": {"email": "contato@saúde.example"}}, "from.email"),
    ],
)
async def test_a_wrong_mail_is_refused_by_field(bench: Bench, changes: dict[str, Any], field: str) -> None:
    answer = await bench.send_mail(mail(**changes))

    assert (answer.status, [error["field"] for error in answer.json["errors"]]) == (400, [field])


async def test_mails_are_read_back_as_their_recipient_sees_them(bench: Bench) -> None:
    await bench.send_mail(mail())
    kept = (await bench.ask("GET", "/_sandbox/messages?provider=sendgrid")).json["messages"][0]

    assert (kept["to"], kept["subject"], kept["text"]) == (["ana@example.com"], "Lembrete", "Amanhã")
    assert kept["html"] == "<p>Amanhã</p>"


async def test_sandbox_mode_checks_and_sends_nothing(bench: Bench) -> None:
    answer = await bench.send_mail(mail(mail_settings={"sandbox_mode": {"enable": True}}))

    assert answer.status == 200
    assert (await bench.ask("GET", "/_sandbox/messages?provider=sendgrid")).json == {"messages": []}


async def test_more_than_30_megabytes_are_too_much(bench: Bench) -> None:
    body = io.BytesIO(b" " * (30 * 1024 * 1024 + 1))
    answer = await bench.ask("POST", "/v3/mail/send", data=body, headers={"Authorization": "Bearer SG.test"})

    assert (answer.status, "errors" in answer.json) == (413, True)


@pytest.mark.parametrize("api_key", ["SG.revoked", "nonsense"])
async def test_a_wrong_sendgrid_key_is_refused(bench: Bench, api_key: str) -> None:
    assert (await bench.send_mail(mail(), api_key)).status == 401


async def test_a_text_is_queued_sent_and_delivered(bench: Bench) -> None:
    answer = await bench.send_text(Body="Olá, amanhã às 14h", StatusCallback=CALLBACK)
    received = await bench.receiver.wait_for(lambda got: len(got) == 3)
    path = f"/2010-04-01/Accounts/{ACCOUNT}/Messages/{answer.json['sid']}.json"
    fetched = await bench.ask("GET", path, headers={"Authorization": BASIC})

    assert (answer.status, answer.json["status"], answer.json["num_segments"]) == (201, "queued", "1")
    assert statuses(received) == ["queued", "sent", "delivered"]
    assert fetched.json["status"] == "delivered"
    assert received[0].path == "/webhooks/twilio/status?attempt=a%2F1"


async def test_twilios_signature_covers_the_url_as_it_was_given(bench: Bench) -> None:
    await bench.send_text(StatusCallback=CALLBACK)
    webhook = (await bench.receiver.wait_for(lambda got: len(got) == 1))[0]

    fields = dict(parse_qsl(webhook.body.decode(), keep_blank_values=True))
    signed = CALLBACK + "".join(name + fields[name] for name in sorted(fields))
    digest = hmac.new(TWILIO_TOKEN.encode(), signed.encode(), hashlib.sha1).digest()
    assert webhook.headers["X-Twilio-Signature"] == base64.b64encode(digest).decode()
    assert webhook.headers["I-Twilio-Idempotency-Token"]


@pytest.mark.parametrize(
    ("form", "code"),
    [
        ({"To": "+15005550001"}, 21211),
        ({"To": "+15005550002"}, 21612),
        ({"To": "+15005550003"}, 21408),
        ({"To": "+15005550004"}, 21610),
        ({"To": "+15005550009"}, 21614),
        ({"To": "+551133334444"}, 21614),
        ({"To": "11 91234"}, 21211),
        ({"To": ""}, 21604),
        ({"From": "+15005550001"}, 21212),
        ({"From": "+15005550007"}, 21606),
        ({"From": "+15005550008"}, 21611),
        ({"Body": ""}, 21602),
        ({"Body": "x" * 1601}, 21617),
    ],
)
async def test_a_magic_number_is_refused_with_its_code(bench: Bench, form: dict[str, str], code: int) -> None:
    answer = await bench.send_text(**form)

    assert (answer.status, answer.json["code"], answer.json["status"]) == (400, code, 400)


@pytest.mark.parametrize(
    ("body", "expected"), [("x" * 160, "1"), ("x" * 161, "2"), ("ã" * 70, "1"), ("ã" * 71, "2"), ("€" * 81, "2")]
)
async def test_segments_are_counted_as_billed(bench: Bench, body: str, expected: str) -> None:
    assert (await bench.send_text(Body=body)).json["num_segments"] == expected


@pytest.mark.parametrize("credentials", ["AC1:wrong", f"{ACCOUNT}:wrong", f"{ACCOUNT}:", "SK1:revoked"])
async def test_wrong_twilio_credentials_are_refused(bench: Bench, credentials: str) -> None:
    answer = await bench.send_text("Basic " + base64.b64encode(credentials.encode()).decode())

    assert (answer.status, answer.json["code"]) == (401, 20003)


async def test_an_api_key_is_let_in(bench: Bench) -> None:
    assert (await bench.send_text("Basic " + base64.b64encode(b"SK1:secret").decode())).status == 201


async def test_texts_are_found_by_recipient_and_date(bench: Bench) -> None:
    for number in ("+5511900000000", "+5511900000001", "+5511900000001"):
        await bench.send_text(To=number)
    hour = 3600
    past, future = (time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time() + d)) for d in (-hour, hour))

    async def found(query: str) -> int:
        return len((await bench.texts(query)).json["messages"])

    assert await found("?To=%2B5511900000001") == 2
    assert await found(f"?To=%2B5511900000001&DateSent%3E={past}") == 2
    assert await found(f"?DateSent%3E={future}") == 0
    assert await found(f"?DateSent%3C={past}") == 0
    assert await found(f"?DateSent>={past}&DateSent<={future}") == 3
    assert await found(f"?DateSent={past[:10]}") + await found(f"?DateSent={future[:10]}") >= 3


async def test_a_list_of_texts_is_paged(bench: Bench) -> None:
    for _ in range(3):
        await bench.send_text()
    first = (await bench.texts("?PageSize=2")).json
    second = (await bench.ask("GET", first["next_page_uri"], headers={"Authorization": BASIC})).json

    assert (len(first["messages"]), len(second["messages"]), second["next_page_uri"]) == (2, 1, None)


async def test_a_scheduled_text_can_be_canceled_and_a_sent_one_not(bench: Bench) -> None:
    later = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time() + 3600))
    service = {"MessagingServiceSid": "MG" + "0" * 32, "From": "", "SendAt": later, "ScheduleType": "fixed"}
    scheduled = (await bench.send_text(**service)).json
    sent = (await bench.send_text()).json

    async def cancel(sid: str) -> int:
        path = f"/2010-04-01/Accounts/{ACCOUNT}/Messages/{sid}.json"
        return (await bench.ask("POST", path, data={"Status": "canceled"}, headers={"Authorization": BASIC})).status

    assert scheduled["status"] == "scheduled"
    assert await cancel(scheduled["sid"]) == 200
    assert await cancel(sent["sid"]) == 409

"""The email service over the wire: its callers on one side, the sandbox's SendGrid on the other."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, cast

import grpc
import icalendar
import pytest
from google.rpc import error_details_pb2
from grpc_status import rpc_status

from services.chassis.database.transactions import Database, one
from services.chassis.outbound.breaker import CircuitBreaker
from services.chassis.queue import operations
from services.chassis.rpc.health import Readiness
from services.chassis.rpc.server import listening
from services.email.__main__ import assembled, rpc_services
from services.email.settings import Settings
from services.messaging.store import Store
from tests.fakes.sandbox_bench import Bench, sandbox_bench
from tests.processes import Process
from topsmile.common.v1 import common_pb2 as common
from topsmile.email.v1 import email_pb2 as pb
from topsmile.email.v1 import email_pb2_grpc as rpc

START = datetime(2199, 3, 14, 17, 30, tzinfo=UTC)
HOUR, DAY = 3_600_000, 86_400_000
MINUTES = 60_000


@dataclass
class Running:
    """An email service that listens, its database and its SendGrid."""

    email: rpc.EmailServiceAsyncStub
    admin: rpc.EmailAdminServiceAsyncStub
    database: Database
    bench: Bench
    breaker: CircuitBreaker

    async def get(self, email_id: str) -> pb.Email:
        answer: pb.GetEmailResponse = await self.email.GetEmail(pb.GetEmailRequest(email_id=email_id))
        return answer.email

    async def until(self, email_id: str, *statuses: str) -> pb.Email:
        async def there() -> bool:
            return status(await self.get(email_id)) in statuses

        await eventually(there)
        return await self.get(email_id)

    async def mails(self) -> list[dict[str, Any]]:
        """The mails that SendGrid took."""
        entries = await self.bench.ledger()
        return [entry["request"] for entry in entries if entry["outcome"] == "accepted"]

    async def reported(self, count: int) -> list[dict[str, Any]]:
        got = await self.bench.receiver.wait_for(lambda received: len(received) >= count)
        return [item for webhook in got for item in json.loads(webhook.body)]

    async def apply(self, *items: object) -> list[str]:
        events = [
            common.ProviderEvent(event_id=f"evt-{hash(json.dumps(item))}", body=json.dumps(item).encode())
            for item in items
        ]
        answer = await self.admin.ApplyEvents(pb.ApplyEventsRequest(events=events))
        return [common.EventOutcome.Name(result.outcome).removeprefix("EVENT_OUTCOME_") for result in answer.results]

    def pass_time(self, milliseconds: int) -> None:
        self.database.offset_ms += milliseconds


async def eventually(condition: Callable[[], Awaitable[bool]]) -> None:
    async with asyncio.timeout(10):
        while not await condition():  # noqa: ASYNC110 - what is awaited happens behind a socket
            await asyncio.sleep(0.02)


@pytest.fixture
async def service(database_url: str, tmp_path: Path) -> AsyncIterator[Running]:
    async with email_service(database_url, tmp_path) as running:
        yield running


@asynccontextmanager
async def email_service(database_url: str, folder: Path, sendgrid: str | None = None) -> AsyncIterator[Running]:
    settings = Settings.model_validate(
        {
            "listen": "127.0.0.1:0",
            "operations_listen": "127.0.0.1:0",
            "database_url": database_url,
            "sendgrid_api_key": "SG.test",
            "from_email": "TopSmile <contato@topsmile.example>",
        }
    )
    async with (
        sandbox_bench(folder / "sandbox.db") as bench,
        assembled(settings.model_copy(update={"sendgrid_api_base": sendgrid or bench.url}), timeout=2.0) as parts,
        listening(settings, Readiness(parts.database), rpc_services(parts)) as address,
        grpc.aio.insecure_channel(str(address)) as channel,
    ):
        loop = asyncio.create_task(parts.worker.run())
        yield Running(
            rpc.EmailServiceStub(channel),
            rpc.EmailAdminServiceStub(channel),
            parts.database,
            bench,
            parts.providers[0].breaker,
        )
        parts.worker.stop()
        await loop


def recipient(address: str = "ana@example.com") -> pb.Recipient:
    return pb.Recipient(address=address, name="Ana Souza")


def appointment(**changes: Any) -> common.Appointment:
    made = common.Appointment(
        appointment_id="apt-1",
        patient_name="João d'Ávila & Filhos",
        professional="Dra. Beatriz Lima",
        clinic='Clínica "Sorriso" <Pinheiros>',
        address="Rua das Flores, 123",
        time_zone="America/Manaus",
        clinic_phone="(92) 3456-7890",
        notes="Traga os exames.\nChegue 10 minutos antes.",
    )
    made.start_time.FromDatetime(START)
    made.end_time.FromDatetime(START + timedelta(minutes=45))
    made.MergeFrom(common.Appointment(**changes))
    return made


def confirmation(key: str = "key-1", to: str = "ana@example.com", **changes: Any) -> Any:
    return pb.SendAppointmentConfirmationRequest(
        idempotency_key=key, recipient=recipient(to), appointment=appointment(**changes)
    )


def reminder(start_in: timedelta, send_in: timedelta, key: str = "key-2") -> Any:
    now = datetime.now(UTC)
    request = pb.SendAppointmentReminderRequest(idempotency_key=key, recipient=recipient(), appointment=appointment())
    request.appointment.start_time.FromDatetime(now + start_in)
    request.appointment.ClearField("end_time")
    request.send_time.FromDatetime(now + send_in)
    return request


def receipt(key: str = "key-3") -> Any:
    notice = pb.SendPaymentNoticeRequest(
        idempotency_key=key,
        recipient=recipient(),
        kind=common.PAYMENT_NOTICE_KIND_SUCCEEDED,
        payment=common.PaymentSummary(
            payment_id="pay_1",
            amount=common.Money(amount_minor=15000, currency="BRL"),
            description="Limpeza",
            appointment_id="apt-1",
            patient_name="João",
            method=common.PAYMENT_METHOD_PIX,
        ),
    )
    notice.payment.paid_time.FromDatetime(datetime(2026, 3, 12, 17, 30, tzinfo=UTC))
    return notice


def status(email: pb.Email) -> str:
    return common.MessageStatus.Name(email.status).removeprefix("MESSAGE_STATUS_")


def history(email: pb.Email) -> list[str]:
    return [common.MessageStatus.Name(step.status).removeprefix("MESSAGE_STATUS_") for step in email.history]


async def refusal(call: Awaitable[object]) -> tuple[grpc.StatusCode, str, dict[str, str]]:
    """The code, the reason and the wrong fields of an RPC that fails."""
    with pytest.raises(grpc.aio.AioRpcError) as failed:
        await call
    info, bad = error_details_pb2.ErrorInfo(), error_details_pb2.BadRequest()
    for detail in rpc_status.from_call(failed.value).details:
        for kind in (info, bad):
            if detail.Is(kind.DESCRIPTOR):
                detail.Unpack(kind)
    wrong = {violation.field: violation.description for violation in bad.field_violations}
    return failed.value.code(), info.reason, wrong


async def send_confirmation(service: Running, **changes: Any) -> str:
    return str((await service.email.SendAppointmentConfirmation(confirmation(**changes))).email.email_id)


async def test_a_confirmation_says_every_fact_in_both_its_forms(service: Running) -> None:
    sent = await service.until(await send_confirmation(service), "SENT")
    (mail,) = await service.mails()
    text, html, _calendar = (part["value"] for part in mail["content"])

    assert sent.subject == mail["subject"] == "Confirmação de Agendamento"
    assert [part["type"] for part in mail["content"]] == ["text/plain", "text/html", "text/calendar; method=REQUEST"]
    assert mail["personalizations"] == [{"to": [{"email": "ana@example.com", "name": "Ana Souza"}]}]
    assert mail["from"] == {"email": "contato@topsmile.example", "name": "TopSmile"}
    assert mail["custom_args"] == {"email_id": sent.email_id, "attempt": "1"}
    for fact in (
        "João d'Ávila & Filhos", "Dra. Beatriz Lima", 'Clínica "Sorriso" <Pinheiros>', "Rua das Flores, 123",
        "quinta-feira, 14 de março de 2199", "13h30 às 14h15 (horário de Manaus)", "(92) 3456-7890",
        "Traga os exames.", "Chegue 10 minutos antes.", "Ana Souza",
    ):  # fmt: skip
        assert fact in text
        assert fact.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;") in html
    assert sent.provider == "sendgrid"
    assert sent.provider_message_id


async def test_a_later_confirmation_moves_the_calendar_entry_of_the_earlier(service: Running) -> None:
    await service.until(await send_confirmation(service), "SENT")
    await asyncio.sleep(1.0)
    await service.until(await send_confirmation(service, key="key-2", professional="Dr. Caio"), "SENT")
    attached = [mail["attachments"][0] for mail in await service.mails()]
    first, second = (icalendar.Calendar.from_ical(base64.b64decode(file["content"])) for file in attached)
    before, after = (cast("Any", entry.walk("VEVENT")[0]) for entry in (first, second))  # its values are a long union

    assert {file["type"] for file in attached} == {"text/calendar; method=REQUEST"}
    assert (first["method"], str(before["organizer"])) == ("REQUEST", "mailto:contato@topsmile.example")
    assert before["uid"] == after["uid"]
    assert before["sequence"] < after["sequence"]
    assert before["dtstart"].dt == START
    assert before["dtstart"].params["TZID"] == "America/Manaus"


async def confirmed(service: Running, request: Any, caller: str = "local") -> tuple[int, str]:
    """Return SEQUENCE and UID of the calendar entry that a confirmation sends."""
    response = await service.email.SendAppointmentConfirmation(request, metadata=(("x-topsmile-caller", caller),))

    async def mailed() -> bool:
        return response.email.email_id in [mail["custom_args"]["email_id"] for mail in await service.mails()]

    await eventually(mailed)
    (mail,) = [mail for mail in await service.mails() if mail["custom_args"]["email_id"] == response.email.email_id][
        -1:
    ]
    entry = icalendar.Calendar.from_ical(base64.b64decode(mail["attachments"][0]["content"]))
    event = cast("Any", entry.walk("VEVENT")[0])  # its values are a long union
    return int(event["sequence"]), str(event["uid"])


async def test_a_calendar_entry_is_numbered_beyond_all_before_whatever_the_clock_says(service: Running) -> None:
    numbers = []
    for number, passed in enumerate((0, 0, 0, -3 * DAY, -HOUR, 40 * DAY, 0)):
        service.pass_time(passed)
        await service.database.run(Store("email", "eml").purge)
        request = confirmation(key=f"key-{number}", professional=f"Dra. {number}")
        numbers.append((await confirmed(service, request))[0])
        assert (await confirmed(service, request))[0] == numbers[-1]

    assert numbers == sorted(set(numbers))
    assert numbers[-1] < 2**31


async def test_calendar_entries_of_two_callers_are_apart(service: Running) -> None:
    _, north = await confirmed(service, confirmation(), "north")
    _, south = await confirmed(service, confirmation(), "south")
    _, later = await confirmed(service, confirmation(key="key-2"), "north")

    assert (north == later, north == south) == (True, False)


async def test_a_receipt_says_what_was_paid(service: Running) -> None:
    sent = (await service.email.SendPaymentNotice(receipt())).email
    await service.until(sent.email_id, "SENT")
    (mail,) = await service.mails()
    text = mail["content"][0]["value"]

    assert (sent.subject, sent.template) == ("Recibo de Pagamento", "payment_succeeded")
    assert "attachments" not in mail
    for fact in ("R$ 150,00", "Limpeza", "João", "Pix", "pay_1", "quinta-feira, 12 de março de 2026, às 14h30"):
        assert fact in text


async def test_repeating_a_key_repeats_the_answer_and_not_the_mail(service: Running) -> None:
    first = await send_confirmation(service)
    await service.until(first, "SENT")
    again = await service.email.SendAppointmentConfirmation(confirmation())

    assert (again.email.email_id, status(again.email)) == (first, "SENT")
    assert len(await service.mails()) == 1


async def test_a_key_used_for_another_request_names_what_differs(service: Running) -> None:
    await send_confirmation(service)
    other = confirmation(professional="Dr. Caio")
    code, reason, wrong = await refusal(service.email.SendAppointmentConfirmation(other))

    assert (code, reason) == (grpc.StatusCode.ALREADY_EXISTS, "IDEMPOTENCY_KEY_REUSED")
    assert wrong.keys() == {"appointment.professional"}


async def test_every_wrong_field_is_named_at_once(service: Running) -> None:
    request = pb.SendAppointmentReminderRequest(
        recipient=pb.Recipient(address="ana@", name="Ana\r\nBcc: todos@example.com"),
        appointment=appointment(patient_name="x" * 201, time_zone="Marte/Olimpo"),
    )
    request.appointment.end_time.FromDatetime(START - timedelta(minutes=1))
    request.send_time.FromDatetime(START + timedelta(minutes=1))
    code, reason, wrong = await refusal(service.email.SendAppointmentReminder(request))

    assert (code, reason) == (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_REQUEST")
    assert wrong.keys() == {
        "idempotency_key", "recipient.address", "recipient.name", "appointment.patient_name", "appointment.time_zone",
        "appointment.end_time", "send_time",
    }  # fmt: skip


@pytest.mark.parametrize("started", [timedelta(days=9000), timedelta(hours=3), timedelta(minutes=61)])
async def test_a_mail_about_an_appointment_that_is_over_is_refused(service: Running, started: timedelta) -> None:
    reminding = reminder(-started, -started - timedelta(hours=1))
    confirming = confirmation(key="key-9")
    confirming.appointment.CopyFrom(reminding.appointment)
    for call in (
        service.email.SendAppointmentReminder(reminding),
        service.email.SendAppointmentConfirmation(confirming),
    ):
        code, _, wrong = await refusal(call)
        assert (code, list(wrong)) == (grpc.StatusCode.INVALID_ARGUMENT, ["appointment.start_time"])


async def test_a_confirmation_is_mailed_until_the_appointment_ends(service: Running) -> None:
    confirming = confirmation()
    confirming.appointment.start_time.FromDatetime(datetime.now(UTC) - timedelta(hours=2))
    confirming.appointment.end_time.FromDatetime(datetime.now(UTC) + timedelta(hours=1))
    sent = (await service.email.SendAppointmentConfirmation(confirming)).email

    assert history(await service.until(sent.email_id, "SENT"))[-1] == "SENT"


def minute_reminder(key: str) -> Any:
    return pb.SendAppointmentReminderRequest(idempotency_key=key, recipient=recipient(), appointment=appointment())


NO_NOTICE = {
    "at the start": {"send_time": timedelta(0)},
    "half a minute before": {"send_time": timedelta(seconds=30)},
    "just under a minute before": {"send_time": timedelta(minutes=1, microseconds=-1)},
    "an hour after": {"send_time": timedelta(hours=-1)},
    "59 seconds": {"before": timedelta(seconds=59)},
    "a microsecond": {"before": timedelta(microseconds=1)},
}


@pytest.mark.parametrize("schedule", NO_NOTICE.values(), ids=NO_NOTICE.keys())
async def test_a_reminder_asked_for_without_a_minute_s_notice_is_refused(
    service: Running, schedule: dict[str, timedelta]
) -> None:
    ((field, length),) = schedule.items()
    too_late, in_time = minute_reminder("no notice"), minute_reminder("in time")
    for request, notice in ((too_late, length), (in_time, timedelta(minutes=1))):
        if field == "before":
            request.before.FromTimedelta(notice)
        else:
            request.send_time.FromDatetime(request.appointment.start_time.ToDatetime(UTC) - notice)

    _, _, wrong = await refusal(service.email.SendAppointmentReminder(too_late))
    assert wrong == {field: "must be at least a minute before the appointment's start"}
    assert (await service.email.SendAppointmentReminder(in_time)).email.email_id


async def test_a_reminder_waits_until_its_moment(service: Running) -> None:
    request = reminder(timedelta(days=30), timedelta(days=29))
    waiting = (await service.email.SendAppointmentReminder(request)).email
    await asyncio.sleep(0.5)
    before = await service.mails()
    service.pass_time(29 * DAY + MINUTES)
    sent = await service.until(waiting.email_id, "SENT")

    assert (status(waiting), before) == ("SCHEDULED", [])
    assert history(sent) == ["SCHEDULED", "SENT"]
    assert [mail["subject"] for mail in await service.mails()] == ["Lembrete de Consulta"]


async def test_a_reminder_is_not_sent_once_the_appointment_has_begun(service: Running) -> None:
    request = reminder(timedelta(days=1), timedelta(hours=23))
    late = (await service.email.SendAppointmentReminder(request)).email
    service.pass_time(DAY + MINUTES)
    ended = await service.until(late.email_id, "EXPIRED")

    assert history(ended) == ["SCHEDULED", "EXPIRED"]
    assert await service.mails() == []


async def test_canceling_an_appointment_stops_its_reminder_and_counts_what_was_too_late(service: Running) -> None:
    await service.until(await send_confirmation(service), "SENT")
    paid = (await service.email.SendPaymentNotice(receipt())).email
    request = reminder(timedelta(days=2), timedelta(days=1))
    waiting = (await service.email.SendAppointmentReminder(request)).email
    cancel = pb.CancelEmailsRequest(appointment_id="apt-1")
    first, second = await service.email.CancelEmails(cancel), await service.email.CancelEmails(cancel)

    assert (first.canceled_count, first.too_late_count) == (1, 1)
    assert (second.canceled_count, second.too_late_count) == (0, 1)
    assert status(await service.get(waiting.email_id)) == "CANCELED"
    await service.until(paid.email_id, "SENT")


async def test_an_email_that_is_not_there_is_not_found(service: Running) -> None:
    unknown = await refusal(service.email.GetEmail(pb.GetEmailRequest(email_id="eml_none")))
    canceled = await refusal(service.email.CancelEmails(pb.CancelEmailsRequest(email_id="eml_none")))
    nothing = await refusal(service.email.CancelEmails(pb.CancelEmailsRequest()))

    assert unknown[:2] == canceled[:2] == (grpc.StatusCode.NOT_FOUND, "NOT_FOUND")
    assert nothing[0] is grpc.StatusCode.INVALID_ARGUMENT


async def test_the_words_of_a_mail_are_kept_until_it_is_handed_over_and_no_longer(service: Running) -> None:
    email_id = await send_confirmation(service)
    await service.until(email_id, "SENT")
    job = await service.database.read(
        one, "SELECT payload, trace FROM job WHERE queue = :queue AND id = :id", queue="email", id=email_id
    )

    assert job["payload"] == b""
    assert job["trace"]


@pytest.mark.parametrize(
    ("address", "ends", "reason"),
    [
        ("delivered@resend.dev", "DELIVERED", ""),
        ("bounced@resend.dev", "BOUNCED", ""),
        ("complained@resend.dev", "COMPLAINED", ""),
        ("deferred@resend.dev", "DEFERRED", ""),
        ("suppressed@resend.dev", "SUPPRESSED", "PROVIDER_REJECTED"),
        ("dropped@resend.dev", "SUPPRESSED", "PROVIDER_REJECTED"),
    ],
)
@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
async def test_what_sendgrid_reports_becomes_the_status(service: Running, address: str, ends: str, reason: str) -> None:
    email_id = await send_confirmation(service, to=address)
    await service.until(email_id, "SENT")
    steps = {"COMPLAINED": 3, "SUPPRESSED": 1}.get(ends, 2)
    await service.apply(*reversed(await service.reported(steps)))
    email = await service.get(email_id)

    assert (status(email), email.failure_reason) == (ends, reason)
    assert history(email)[-1] == ends


async def test_a_lost_answer_is_found_out_from_the_first_event_and_not_sent_again(service: Running) -> None:
    await service.bench.fault(provider="sendgrid", kind="reset", after=True)
    email_id = await send_confirmation(service)
    await service.until(email_id, "UNKNOWN")
    items = await service.reported(2)
    await service.apply(*items)
    service.pass_time(20 * MINUTES)
    await asyncio.sleep(0.7)
    email = await service.get(email_id)

    assert history(email) == ["QUEUED", "UNKNOWN", "SENT", "DELIVERED"]
    assert email.provider_message_id == items[0]["sg_message_id"].partition(".")[0]
    assert len(await service.mails()) == 1


async def test_a_lost_answer_without_an_event_for_ten_minutes_is_sent_again(service: Running) -> None:
    await service.bench.fault(provider="sendgrid", kind="reset")
    email_id = await send_confirmation(service)
    await service.until(email_id, "UNKNOWN")
    cancel = await service.email.CancelEmails(pb.CancelEmailsRequest(email_id=email_id))
    service.pass_time(5 * MINUTES)
    await asyncio.sleep(0.7)
    after_five = await service.mails()
    service.pass_time(6 * MINUTES)
    await service.until(email_id, "SENT")
    (mail,) = await service.mails()

    assert (cancel.canceled_count, cancel.too_late_count) == (0, 1)
    assert after_five == []
    assert int(mail["custom_args"]["attempt"]) > 1


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
async def test_a_reminder_whose_answer_was_lost_is_not_sent_again_after_the_start(service: Running) -> None:
    await service.bench.fault(provider="sendgrid", kind="reset")
    request = reminder(timedelta(minutes=5), timedelta(0))
    email_id = (await service.email.SendAppointmentReminder(request)).email.email_id
    await service.until(email_id, "UNKNOWN")
    service.pass_time(11 * MINUTES)

    async def given_up() -> bool:
        return bool((await service.get(email_id)).failure_reason)

    await eventually(given_up)
    email = await service.get(email_id)

    assert (status(email), email.failure_reason) == ("UNKNOWN", "OUTCOME_UNKNOWN")
    assert await service.mails() == []


async def test_a_mail_that_never_left_is_still_queued_and_can_be_canceled(database_url: str, tmp_path: Path) -> None:
    async with email_service(database_url, tmp_path, sendgrid="http://127.0.0.1:9") as service:
        email_id = await send_confirmation(service)
        await backing_off(service, email_id)
        waiting = await service.get(email_id)
        answer = await service.email.CancelEmails(pb.CancelEmailsRequest(email_id=email_id))

    assert (status(waiting), answer.canceled_count) == ("QUEUED", 1)


async def test_a_mail_that_could_not_be_handed_over_for_a_day_expires_and_says_why(
    database_url: str, tmp_path: Path
) -> None:
    async with email_service(database_url, tmp_path, sendgrid="http://127.0.0.1:9") as service:
        email_id = await send_confirmation(service)
        await backing_off(service, email_id)
        service.pass_time(DAY + HOUR)
        ended = await service.until(email_id, "EXPIRED")

    assert ended.failure_reason == "NOT_SENT"


async def backing_off(service: Running, email_id: str) -> None:
    async def found() -> bool:
        sql = "SELECT note, state FROM job WHERE queue = :queue AND id = :id"
        job = await service.database.read(one, sql, queue="email", id=email_id)
        return bool(job["note"] == "NOT_SENT" and job["state"] == "queued")

    await eventually(found)


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
async def test_killed_between_sendgrids_acceptance_and_its_answer_it_sends_once(
    database_url: str, tmp_path: Path
) -> None:
    async with sandbox_bench(tmp_path / "sandbox.db") as bench:
        settings = {
            "EMAIL_LISTEN": "127.0.0.1:0", "EMAIL_OPERATIONS_LISTEN": "127.0.0.1:0", "EMAIL_DATABASE_URL": database_url,
            "SENDGRID_API_KEY": "SG.test", "SENDGRID_API_BASE": bench.url, "FROM_EMAIL": "contato@topsmile.example",
        }  # fmt: skip
        await bench.fault(provider="sendgrid", kind="hang_after_accepting", seconds=30)
        async with started(settings, bench) as (service, process):
            email_id = await send_confirmation(service)
            events = await service.reported(2)
            during = status(await service.get(email_id))
            await asyncio.to_thread(process.kill)
        async with started(settings, bench) as (service, process):
            await service.until(email_id, "UNKNOWN")
            await service.apply(*events)
            after = await service.get(email_id)
            mails = await service.mails()
            code = await asyncio.to_thread(process.end)

    assert (during, history(after)) == ("SENDING", ["QUEUED", "UNKNOWN", "SENT", "DELIVERED"])
    assert (len(mails), code) == (1, 0)
    assert "ana@example.com" not in "".join(process.lines)


@asynccontextmanager
async def started(settings: dict[str, str], bench: Bench) -> AsyncIterator[tuple[Running, Process]]:
    """The service as a process of its own; its database is not at hand then."""
    process = await asyncio.to_thread(Process, "services.email", settings)
    try:
        async with grpc.aio.insecure_channel(process.listening["grpc"]) as channel:
            stub, admin = rpc.EmailServiceStub(channel), rpc.EmailAdminServiceStub(channel)
            yield Running(stub, admin, cast("Database", None), bench, CircuitBreaker("not at hand")), process
    finally:
        await asyncio.to_thread(process.kill)


TROUBLE: list[tuple[dict[str, Any], str, int]] = [
    ({"kind": "throttle", "retry_after": 100}, "THROTTLED", 2 * MINUTES),
    ({"kind": "status", "status": 401}, "PROVIDER_CREDENTIALS", 2 * MINUTES),
    ({"kind": "status", "status": 403}, "PROVIDER_CREDENTIALS", 2 * MINUTES),
    ({"kind": "status", "status": 401, "message": "Maximum credits exceeded"}, "QUOTA", 2 * MINUTES),
]


@pytest.mark.parametrize(("fault", "reason", "pause"), TROUBLE)
@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
async def test_what_is_not_the_mails_fault_pauses_the_queue_and_loses_nothing(
    service: Running, fault: dict[str, Any], reason: str, pause: int
) -> None:
    await service.bench.fault(provider="sendgrid", **fault)
    first = await send_confirmation(service)
    await paused(service, reason)
    second = await send_confirmation(service, key="key-9")
    await asyncio.sleep(0.5)
    held = [await service.get(first), await service.get(second)]
    service.pass_time(pause)
    await service.until(first, "SENT")
    await service.until(second, "SENT")

    assert [(status(email), email.waiting_reason) for email in held] == [("QUEUED", reason)] * 2
    assert all(email.waiting_time.ToDatetime(UTC) > datetime.now(UTC) for email in held)
    assert (await service.get(second)).waiting_reason == ""
    assert [entry["status"] for entry in await service.bench.ledger()] == [fault.get("status", 429), 202, 202]


async def paused(service: Running, reason: str) -> None:
    async def found() -> bool:
        sql = "SELECT COALESCE(MAX(reason), '') AS reason FROM rate_limit WHERE queue = :queue"
        return bool((await service.database.read(one, sql, queue="sendgrid"))["reason"] == reason)

    await eventually(found)


@pytest.mark.parametrize(
    ("code", "ends", "reason"),
    [
        (400, "FAILED", "PROVIDER_REFUSED_INPUT"),
        (413, "FAILED", "PROVIDER_REFUSED_INPUT"),
        (410, "FAILED", "PROVIDER_REJECTED"),
        (302, "UNKNOWN", ""),
        (200, "UNKNOWN", ""),
        (503, "UNKNOWN", ""),
    ],
)
@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
async def test_only_a_202_is_a_success(service: Running, code: int, ends: str, reason: str) -> None:
    await service.bench.fault(provider="sendgrid", kind="status", status=code)
    email = await service.until(await send_confirmation(service), ends)

    assert email.failure_reason == reason


def event(email_id: str, kind: str, **more: object) -> dict[str, object]:
    return {"event": kind, "email_id": email_id, "timestamp": 1_790_000_000, "email": "ana@example.com", **more}


async def test_an_email_moves_only_forward_whatever_the_order_of_events(service: Running) -> None:
    email_id = await send_confirmation(service, to="noreceipt@example.com")
    await service.until(email_id, "SENT")
    delivered = event(email_id, "delivered", response="250 OK")
    outcomes = await service.apply(
        delivered, delivered, event(email_id, "processed"), event(email_id, "deferred"), event(email_id, "open"),
        event(email_id, "bounce", type="bounce", reason="550 no"),
        event(email_id, "delivered", timestamp=1_790_000_009),
    )  # fmt: skip
    email = await service.get(email_id)

    assert outcomes == ["APPLIED", "DUPLICATE", "STALE", "STALE", "IGNORED_FOREIGN", "APPLIED", "STALE"]
    assert await service.apply(delivered) == ["DUPLICATE"]
    assert history(email) == ["QUEUED", "SENT", "DELIVERED", "BOUNCED"]
    assert [step.detail for step in email.history][2:] == ["250 OK", "550 no"]


@pytest.mark.parametrize(
    ("kind", "more", "ends"),
    [
        ("bounce", {"type": "bounce", "reason": "550 5.1.1 unknown"}, "BOUNCED"),
        ("dropped", {"reason": "Spam Content"}, "DROPPED"),
        ("dropped", {"reason": "Bounced Address"}, "SUPPRESSED"),
        ("deferred", {"response": "421 later", "attempt": "3"}, "DEFERRED"),
        ("delivered", {"response": "250 OK"}, "DELIVERED"),
        ("spamreport", {}, "COMPLAINED"),
    ],
)
async def test_event_without_email_id_is_found_by_the_id_that_sendgrid_answered(
    service: Running, kind: str, more: dict[str, str], ends: str
) -> None:
    sent = await service.until(await send_confirmation(service, to="noreceipt@example.com"), "SENT")
    item = event("", kind, sg_message_id=f"{sent.provider_message_id}.recvd-5f-x.0", **more)
    del item["email_id"]

    assert await service.apply(item, item, {**item, "sg_message_id": "elsewhere.recvd"}) == [
        "APPLIED", "DUPLICATE", "IGNORED_FOREIGN"
    ]  # fmt: skip
    assert status(await service.get(sent.email_id)) == ends


@pytest.mark.parametrize(
    ("age", "outcome"),
    [
        (0, "RETRY"),
        (59, "RETRY"),
        (-30, "RETRY"),
        (61, "IGNORED_FOREIGN"),
        (9000, "IGNORED_FOREIGN"),
        (-9000, "IGNORED_FOREIGN"),
    ],
)
async def test_event_that_may_be_ahead_of_our_commit_is_asked_for_again(
    service: Running, age: int, outcome: str
) -> None:
    item = {"event": "delivered", "timestamp": 1_790_000_000, "sg_message_id": "not-stored-yet.recvd-1"}
    early = common.ProviderEvent(event_id="early", body=json.dumps(item).encode())
    early.received_time.FromDatetime(datetime.now(UTC) - timedelta(seconds=age))
    (result,) = (await service.admin.ApplyEvents(pb.ApplyEventsRequest(events=[early]))).results

    assert common.EventOutcome.Name(result.outcome) == f"EVENT_OUTCOME_{outcome}"


@pytest.mark.parametrize("reason", ["550 5.7.1 blocked by policy", "554 reputation", "421 too many connections", ""])
async def test_block_is_no_bounce_of_the_address(service: Running, reason: str) -> None:
    sent = await service.until(await send_confirmation(service, to="noreceipt@example.com"), "SENT")
    await service.apply(event(sent.email_id, "bounce", type="blocked", reason=reason))
    email = await service.get(sent.email_id)

    assert (status(email), email.failure_reason) == ("DROPPED", "PROVIDER_REJECTED")
    assert email.history[-1].detail == reason


REPORTED = [
    ("processed", {}),
    ("deferred", {}),
    ("delivered", {}),
    ("bounce", {"type": "blocked"}),
    ("bounce", {"type": "bounce"}),
    ("spamreport", {}),
]


@pytest.mark.parametrize("first", range(len(REPORTED)))
@pytest.mark.parametrize("backwards", [False, True])
@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
async def test_order_of_events_changes_neither_the_last_status_nor_the_order_of_the_history(
    service: Running, first: int, backwards: bool
) -> None:
    sent = await service.until(await send_confirmation(service, to="noreceipt@example.com"), "SENT")
    kinds = REPORTED[first:] + REPORTED[:first]
    for number, (kind, more) in enumerate(reversed(kinds) if backwards else kinds):
        # Seconds of another clock: behind ours, ahead of it, and equal.
        timestamp = int(datetime.now(UTC).timestamp()) + (-90, 3600, 0)[number % 3]
        await service.apply(event(sent.email_id, kind, timestamp=timestamp, **more))
    email = await service.get(sent.email_id)
    times = [step.change_time.ToNanoseconds() for step in email.history]

    assert status(email) == history(email)[-1] == "COMPLAINED"
    assert times == sorted(times)
    assert times[-1] <= email.update_time.ToNanoseconds()


async def test_waiting_mail_says_what_holds_it_back(database_url: str, tmp_path: Path) -> None:
    async with email_service(database_url, tmp_path, sendgrid="http://127.0.0.1:9") as service:
        email_id = await send_confirmation(service)
        await backing_off(service, email_id)
        failed = await service.get(email_id)
        service.breaker.force_open()
        held = (await service.email.SendPaymentNotice(receipt())).email.email_id
        open_breaker = await service.get(held)
        await service.database.run(operations.park, "email", held)
        parked = await service.get(held)
        await service.email.CancelEmails(pb.CancelEmailsRequest(email_id=held))

    assert failed.waiting_reason == "NOT_SENT"
    assert failed.waiting_time.ToNanoseconds() > failed.update_time.ToNanoseconds()
    assert open_breaker.waiting_reason == "BREAKER_OPEN"
    assert open_breaker.HasField("waiting_time")
    assert (parked.waiting_reason, parked.HasField("waiting_time")) == ("PARKED", False)


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
async def test_events_that_are_not_ours_or_no_events_change_nothing(service: Running) -> None:
    email_id = await send_confirmation(service)
    outcomes = await service.apply(
        {"event": "delivered", "timestamp": 1_790_000_000},
        event("eml_elsewhere", "delivered"),
        event(email_id, "account_status_change"),
        event(email_id, "delivered", timestamp="soon"),
        event(email_id, "delivered", timestamp=10**30),
        {"email_id": email_id},
        [],
        None,
    )
    garbage = await service.admin.ApplyEvents(
        pb.ApplyEventsRequest(
            events=[common.ProviderEvent(event_id="e", body=b"\xff"), common.ProviderEvent(body=b"{}")]
        )
    )

    assert outcomes == ["IGNORED_FOREIGN"] * 3 + ["REJECTED"] * 5
    assert {result.outcome for result in garbage.results} == {common.EVENT_OUTCOME_REJECTED}


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
async def test_too_many_events_are_refused_as_a_whole(service: Running) -> None:
    many = pb.ApplyEventsRequest(
        events=[common.ProviderEvent(event_id=str(number), body=b"{}") for number in range(101)]
    )
    large = pb.ApplyEventsRequest(events=[common.ProviderEvent(event_id="1", body=b" " * (2 << 20) + b"{}")])

    for request in (many, large, pb.ApplyEventsRequest()):
        code, _, wrong = await refusal(service.admin.ApplyEvents(request))
        assert (code, list(wrong)) == (grpc.StatusCode.INVALID_ARGUMENT, ["events"])

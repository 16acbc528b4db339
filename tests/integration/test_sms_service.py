"""The sms service over the wire: real RPCs, Twilio's library, real HTTP to the sandbox, both databases."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, time, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import urlencode
from zoneinfo import ZoneInfo

import aiohttp
import grpc
import pytest

from services.chassis.database.transactions import one
from services.chassis.errors import AlreadyExists, InvalidRequest, NotFound, ServiceError
from services.chassis.outbound.breaker import CircuitBreaker
from services.chassis.rpc.error_details import from_rpc_error
from services.chassis.rpc.health import Readiness
from services.chassis.rpc.server import listening
from services.messaging.channel import Channel
from services.sms.__main__ import assembled, rpc_services
from services.sms.settings import Settings
from tests.processes import Sandbox, process, sandbox
from topsmile.common.v1 import common_pb2 as common
from topsmile.sms.v1 import sms_pb2 as pb
from topsmile.sms.v1.sms_pb2_grpc import SmsAdminServiceStub, SmsServiceStub

if TYPE_CHECKING:
    from topsmile.sms.v1.sms_pb2_grpc import SmsAdminServiceAsyncStub, SmsServiceAsyncStub

T = TypeVar("T")
SAO_PAULO = ZoneInfo("America/Sao_Paulo")
SILENT, OPTED_OUT, LANDLINE_AT_TWILIO = "+5511900000091", "+15005550004", "+15005550009"
ACCOUNT = "AC" + "0" * 32

numbers = itertools.count(20_000_000)


def recipient() -> str:
    """A mobile number that no other test has texted."""
    return f"+55119{next(numbers)}"


async def eventually(ask: Callable[[], Awaitable[T]], good: Callable[[T], object] = bool, wait: float = 10.0) -> T:
    deadline = asyncio.get_running_loop().time() + wait
    while not good(answer := await ask()):
        assert asyncio.get_running_loop().time() < deadline, f"not in time: {answer}"
        await asyncio.sleep(0.03)
    return answer


@pytest.fixture(scope="module")
def box(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sandbox]:
    with sandbox(tmp_path_factory.mktemp("sandbox"), TWILIO_AUTH_TOKEN="token") as running:
        yield running


def settings_of(box: Sandbox, database_url: str, **changes: str) -> dict[str, str]:
    return {
        "SMS_LISTEN": "127.0.0.1:0",
        "SMS_OPERATIONS_LISTEN": "127.0.0.1:0",
        "SMS_DATABASE_URL": database_url,
        "TWILIO_ACCOUNT_SID": ACCOUNT,
        "TWILIO_AUTH_TOKEN": "token",
        "TWILIO_PHONE_NUMBER": "+15005550006",
        "TWILIO_API_BASE": box.url,
        "TWILIO_PER_SECOND": "200",
        "PUBLIC_URL": "https://clinic.example",
        "SMS_PEPPER": "a pepper of sixteen",
        **changes,
    }


@dataclass
class Desk:
    """The running service, its client, and what Twilio's double knows."""

    stub: SmsServiceAsyncStub
    admin: SmsAdminServiceAsyncStub
    parts: Channel
    http: aiohttp.ClientSession
    box: Sandbox

    @property
    def breaker(self) -> CircuitBreaker:
        return self.parts.providers[0].breaker

    async def texts(self, to: str) -> list[dict[str, Any]]:
        async with self.http.get("/_sandbox/messages?provider=twilio") as answer:
            return [text for text in (await answer.json())["messages"] if text["to"] == to]

    async def requests(self, to: str) -> list[dict[str, Any]]:
        async with self.http.get("/_sandbox/ledger?provider=twilio&limit=100000") as answer:
            entries = (await answer.json())["entries"]
        return [entry for entry in entries if entry["method"] == "POST" and entry["request"].get("To") == to]

    async def fault(self, **fault: object) -> None:
        async with self.http.post("/_sandbox/faults", json={"provider": "twilio", **fault}) as answer:
            assert answer.status == 201, await answer.text()

    async def get(self, sms_id: str) -> pb.Sms:
        return (await self.stub.GetSms(pb.GetSmsRequest(sms_id=sms_id))).sms

    async def becomes(self, sms_id: str, status: str, wait: float = 10.0) -> pb.Sms:
        wanted = common.MessageStatus.Value(f"MESSAGE_STATUS_{status}")
        return await eventually(lambda: self.get(sms_id), lambda sms: sms.status == wanted, wait)

    async def row(self, sql: str, **parameters: object) -> Any:
        return await self.parts.database.read(one, sql, **parameters)

    async def kept(self, sms_id: str) -> bytes:
        """What its job still holds."""
        return bytes((await self.row("SELECT payload FROM job WHERE id = :id", id=sms_id))["payload"])

    def later(self, **time: float) -> None:
        self.parts.database.offset_ms += int(timedelta(**time).total_seconds() * 1000)
        self.parts.worker.wake()

    async def until(self, moment: datetime) -> None:
        """Move the database's clock; whatever is due by then is claimed."""
        now = datetime.fromtimestamp((await self.row("SELECT now_ms() AS now"))["now"] / 1000, UTC)
        self.later(seconds=(moment - now).total_seconds())

    async def callback(self, sms: pb.Sms, twilio_status: str, *, event_id: str, **form: str) -> common.EventResult:
        fields = {"MessageSid": sms.provider_message_id, "MessageStatus": twilio_status, "To": sms.recipient, **form}
        event = common.ProviderEvent(
            event_id=event_id,
            body=urlencode(fields).encode(),
            query=urlencode({"sms_id": sms.sms_id, "attempt": 1}),
        )
        (result,) = (await self.admin.ApplyEvents(pb.ApplyEventsRequest(events=[event]))).results
        return result


@pytest.fixture
async def desk(box: Sandbox, database_url: str, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Desk]:
    for name, value in settings_of(box, database_url).items():
        monkeypatch.setenv(name, value)
    settings = Settings.model_validate({})
    async with (
        assembled(settings) as parts,
        aiohttp.ClientSession(box.url) as http,
        listening(settings, Readiness(parts.database), rpc_services(parts, settings)) as address,
        grpc.aio.insecure_channel(str(address)) as channel,
    ):
        working = asyncio.create_task(parts.worker.run())
        yield Desk(SmsServiceStub(channel), SmsAdminServiceStub(channel), parts, http, box)
        parts.worker.stop()
        await working
        async with http.delete("/_sandbox/faults"):
            pass


def daytime(days: int = 0, hour: int = 12) -> datetime:
    """A moment of a coming day, on the clinic's clock."""
    return datetime.combine(datetime.now(SAO_PAULO).date() + timedelta(days=1 + days), time(hour), SAO_PAULO)


def appointment(start_at: datetime | None = None, **changes: str) -> common.Appointment:
    facts: dict[str, Any] = {"appointment_id": "apt-1", "patient_name": "Ana Souza", "professional": "Dra. Rita"}
    about = common.Appointment(**{**facts, **changes})
    about.start_time.FromDatetime(start_at or datetime(2036, 3, 13, 17, 30, tzinfo=UTC))
    return about


def reminder(key: str, start_at: datetime, *, before: timedelta | None = None) -> pb.SendAppointmentReminderRequest:
    request = pb.SendAppointmentReminderRequest(
        idempotency_key=key, recipient=recipient(), appointment=appointment(start_at)
    )
    if before is not None:
        request.before.FromTimedelta(before)
    return request


def custom(key: str = "k", **changes: Any) -> pb.SendSmsRequest:
    return pb.SendSmsRequest(**{"idempotency_key": key, "recipient": recipient(), "body": "Olá, Ana!", **changes})


async def refused(call: Awaitable[object], kind: type[ServiceError]) -> ServiceError:
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await call
    error = from_rpc_error(raised.value)
    assert isinstance(error, kind), error
    return error


async def test_a_text_is_folded_sent_once_and_told_of(desk: Desk) -> None:
    request = custom(body="Olá, seu orçamento está pronto \N{EN DASH} até amanhã")
    accepted = (await desk.stub.SendSms(request)).sms

    sms = await desk.becomes(accepted.sms_id, "SENT")

    (text,) = await desk.texts(request.recipient)
    assert text["body"] == "Ola, seu orcamento esta pronto - até amanha"
    assert (sms.provider, sms.provider_message_id, sms.segments) == ("twilio", text["sid"], 1)
    assert sms.encoding == pb.SMS_ENCODING_GSM_7
    assert [common.MessageStatus.Name(change.status) for change in sms.history] == [
        "MESSAGE_STATUS_QUEUED",
        "MESSAGE_STATUS_SENT",
    ]
    (sent,) = await desk.requests(request.recipient)
    callback = f"https://clinic.example/webhooks/twilio/status?sms_id={sms.sms_id}&attempt=1"
    assert sent["request"]["StatusCallback"] == callback
    assert sent["request"]["ValidityPeriod"] == "36000"


@pytest.mark.parametrize("to_code", ["30002", "30034", "30024", "20003"])
async def test_a_text_that_fails_for_our_account_s_sake_pauses_the_queue(desk: Desk, to_code: str) -> None:
    first = (await desk.stub.SendSms(custom("first"))).sms
    sms = await desk.becomes(first.sms_id, "SENT")
    result = await desk.callback(sms, "failed", event_id="e1", ErrorCode=to_code)
    waiting = (await desk.stub.SendSms(custom("second"))).sms
    await asyncio.sleep(0.7)
    held = await desk.texts(waiting.recipient)
    failed = await desk.get(sms.sms_id)
    desk.later(seconds=601)
    await desk.becomes(waiting.sms_id, "SENT")

    assert result.outcome == common.EVENT_OUTCOME_APPLIED
    assert (failed.status, failed.failure_reason) == (common.MESSAGE_STATUS_FAILED, "PROVIDER_CREDENTIALS")
    assert failed.history[-1].detail == f"Twilio {to_code}"
    assert held == []


@pytest.mark.parametrize("code", ["30003", "30006", "30999"])
async def test_a_text_that_fails_for_the_recipient_s_sake_pauses_nothing(desk: Desk, code: str) -> None:
    first = (await desk.stub.SendSms(custom("first"))).sms
    sms = await desk.becomes(first.sms_id, "SENT")
    await desk.callback(sms, "undelivered", event_id="e1", ErrorCode=code)
    second = (await desk.stub.SendSms(custom("second"))).sms
    await desk.becomes(second.sms_id, "SENT")

    assert (await desk.get(sms.sms_id)).status == common.MESSAGE_STATUS_UNDELIVERED


async def test_accents_are_kept_where_that_is_asked_for(desk: Desk) -> None:
    request = custom(body="Olá, não esqueça", keep_accents=True)
    sms = (await desk.stub.SendSms(request)).sms
    await desk.becomes(sms.sms_id, "SENT")

    assert [text["body"] for text in await desk.texts(request.recipient)] == ["Olá, não esqueça"]
    assert sms.encoding == pb.SMS_ENCODING_UCS_2


async def test_repeating_a_key_repeats_the_answer_not_the_text(desk: Desk) -> None:
    request = custom()
    first = (await desk.stub.SendSms(request)).sms
    await desk.becomes(first.sms_id, "SENT")
    request.recipient = f"({request.recipient[3:5]}) {request.recipient[5:]}"  # the same number, as people write it
    again = (await desk.stub.SendSms(request)).sms

    assert (again.sms_id, again.status) == (first.sms_id, common.MESSAGE_STATUS_SENT)
    assert len(await desk.texts(first.recipient)) == 1


async def test_a_key_used_for_another_request_names_what_differs(desk: Desk) -> None:
    request = custom()
    await desk.stub.SendSms(request)
    request.body = "Outra coisa"

    error = await refused(desk.stub.SendSms(request), AlreadyExists)

    assert [violation.field for violation in error.violations] == ["body"]


async def test_every_wrong_field_is_named_and_nothing_is_stored(desk: Desk) -> None:
    request = pb.SendAppointmentReminderRequest(recipient="(11) 3123-4567", appointment=appointment(appointment_id=""))
    request.appointment.time_zone = "Mars/Olympus"
    request.send_time.FromDatetime(datetime(2037, 1, 1, tzinfo=UTC))

    error = await refused(desk.stub.SendAppointmentReminder(request), InvalidRequest)

    wrong = {violation.field: violation.description for violation in error.violations}
    assert wrong.keys() == {
        "idempotency_key", "recipient", "appointment.appointment_id", "appointment.time_zone", "send_time"
    }  # fmt: skip
    assert "mobile number" in wrong["recipient"]
    assert (await desk.row("SELECT COUNT(*) AS n FROM message"))["n"] == 0


HOUR = timedelta(hours=1)


@pytest.mark.parametrize(
    ("started", "length", "over"),
    [
        (timedelta(days=9000), None, True),
        (timedelta(days=1), timedelta(hours=3), True),
        (timedelta(hours=1, minutes=1), None, True),
        (timedelta(minutes=50), None, False),
        (timedelta(hours=2), timedelta(hours=3), False),
        (timedelta(days=-1), None, False),
    ],
)
async def test_a_confirmation_of_an_appointment_that_is_over_is_refused(
    desk: Desk, started: timedelta, length: timedelta | None, over: bool
) -> None:
    start_at = datetime.now(UTC) - started
    request = pb.SendAppointmentConfirmationRequest(idempotency_key="c", recipient=recipient())
    request.appointment.CopyFrom(appointment(start_at))
    if length:
        request.appointment.end_time.FromDatetime(start_at + length)
    if over:
        error = await refused(desk.stub.SendAppointmentConfirmation(request), InvalidRequest)
        assert [violation.field for violation in error.violations] == ["appointment.start_time"]
        assert (await desk.row("SELECT COUNT(*) AS n FROM message"))["n"] == 0
    else:
        await desk.becomes((await desk.stub.SendAppointmentConfirmation(request)).sms.sms_id, "SENT")


@pytest.mark.parametrize("started", [timedelta(days=3000), timedelta(hours=2), timedelta(seconds=5)])
async def test_a_reminder_of_an_appointment_that_has_begun_is_refused(desk: Desk, started: timedelta) -> None:
    request = reminder("r", datetime.now(UTC) - started, before=HOUR)
    error = await refused(desk.stub.SendAppointmentReminder(request), InvalidRequest)

    assert [violation.field for violation in error.violations] == ["appointment.start_time"]


async def test_a_repeated_key_is_answered_also_when_the_appointment_is_over(desk: Desk) -> None:
    request = reminder("r", daytime(days=1), before=HOUR)
    first = (await desk.stub.SendAppointmentReminder(request)).sms
    await desk.until(daytime(days=2))

    assert (await desk.stub.SendAppointmentReminder(request)).sms.sms_id == first.sms_id


@pytest.mark.parametrize("to", ["21 9xxxx xxxx", "(11) 9DENT-ISTA", "11 9123-4567/8", "912345678;phone-context=+5511"])
async def test_a_recipient_with_letters_or_two_numbers_is_refused_and_nobody_is_texted(desk: Desk, to: str) -> None:
    error = await refused(desk.stub.SendSms(custom(recipient=to)), InvalidRequest)

    assert [violation.field for violation in error.violations] == ["recipient"]
    assert (await desk.row("SELECT COUNT(*) AS n FROM message"))["n"] == 0


@pytest.mark.parametrize("year", [1, 1969, 1999, 2200, 9999])
async def test_a_time_outside_the_years_of_this_system_is_the_caller_s_error(desk: Desk, year: int) -> None:
    time = datetime(year, 1, 1, tzinfo=UTC)
    reminding = pb.SendAppointmentReminderRequest(idempotency_key="r", recipient=recipient(), appointment=appointment())
    reminding.appointment.start_time.FromDatetime(time)
    reminding.appointment.end_time.FromDatetime(time)
    reminding.before.FromTimedelta(timedelta(days=3000))
    confirming = pb.SendAppointmentConfirmationRequest(idempotency_key="c", recipient=recipient())
    confirming.appointment.CopyFrom(reminding.appointment)
    later = custom()
    later.send_time.FromDatetime(time)

    for call in (
        desk.stub.SendAppointmentReminder(reminding),
        desk.stub.SendAppointmentConfirmation(confirming),
        desk.stub.SendSms(later),
    ):
        error = await refused(call, InvalidRequest)
        assert {violation.field for violation in error.violations} <= {
            "appointment.start_time", "appointment.end_time", "send_time", "before"
        }  # fmt: skip


@pytest.mark.parametrize(
    ("body", "sent"),
    [
        ("Tome 2½ comprimidos às 8h", "Tome 2 1/2 comprimidos às 8h"),
        ("≥ 500 µg, 36,5 °C, 10³ ml", ">= 500 mcg, 36,5 oC, 10^3 ml"),
        ("Sala ③, 1º andar · R$ 5±1", "Sala 3, 1o andar * R$ 5+/-1"),
    ],
)
async def test_a_folded_text_keeps_its_numbers_apart(desk: Desk, body: str, sent: str) -> None:
    request = custom(body=body)
    sms = (await desk.stub.SendSms(request)).sms
    await desk.becomes(sms.sms_id, "SENT")

    assert [text["body"] for text in await desk.texts(request.recipient)] == [sent]


@pytest.mark.parametrize(
    ("body", "named"),
    [
        ("Sua consulta é amanhã 😀", "😀"),
        ("한글", "한 글"),
        ("pago ✓, não ✗", "✓ ✗"),
        ("a ≠ b", "≠"),
        ("请", "请"),
    ],
)
async def test_characters_that_cannot_be_sent_are_named_unless_accents_are_kept(
    desk: Desk, body: str, named: str
) -> None:
    error = await refused(desk.stub.SendSms(custom(body=body)), InvalidRequest)
    request = custom("kept", body=body, keep_accents=True)
    sms = (await desk.stub.SendSms(request)).sms
    await desk.becomes(sms.sms_id, "SENT")

    ((field, description, *_),) = error.violations
    assert (field, named in description, "keep_accents" in description) == ("body", True, True)
    assert [text["body"] for text in await desk.texts(request.recipient)] == [body]


@pytest.mark.parametrize("body", ["", "  \n ", "\N{ZERO WIDTH SPACE}", "😀", "x" * 1601])
async def test_a_body_that_cannot_be_sent_is_refused(desk: Desk, body: str) -> None:
    error = await refused(desk.stub.SendSms(custom(body=body)), InvalidRequest)

    assert [violation.field for violation in error.violations] == ["body"]


async def test_the_texts_say_what_they_should(desk: Desk) -> None:
    confirmed = pb.SendAppointmentConfirmationRequest(
        idempotency_key="c", recipient=recipient(), appointment=appointment()
    )
    code = pb.SendVerificationCodeRequest(idempotency_key="v", recipient=recipient(), code="493021")
    paid = pb.SendPaymentNoticeRequest(
        idempotency_key="p", recipient=recipient(), kind=common.PAYMENT_NOTICE_KIND_SUCCEEDED,
        payment=common.PaymentSummary(
            payment_id="pay_1", amount=common.Money(amount_minor=15000, currency="BRL"),
            method=common.PAYMENT_METHOD_PIX,
        ),
    )  # fmt: skip
    paid.payment.paid_time.FromDatetime(datetime(2036, 3, 13, 1, 30, tzinfo=UTC))  # the evening before, in São Paulo
    sent = [
        (await desk.stub.SendAppointmentConfirmation(confirmed)).sms,
        (await desk.stub.SendVerificationCode(code)).sms,
        (await desk.stub.SendPaymentNotice(paid)).sms,
    ]
    for sms in sent:
        await desk.becomes(sms.sms_id, "SENT")

    assert [(await desk.texts(sms.recipient))[0]["body"] for sms in sent] == [
        "Confirmacao: Consulta agendada para quinta-feira, 13 de marco às 14h30 com Dra. Rita. Paciente: Ana Souza",
        "Seu codigo de verificacao: 493021",
        "Pagamento recebido: R$ 150,00 em 12/03/2036 por Pix",
    ]
    assert [sms.template for sms in sent] == ["appointment_confirmation", "verification_code", "payment_succeeded"]


async def test_a_code_waits_sealed_and_is_nowhere_after_the_hand_over(desk: Desk) -> None:
    desk.breaker.force_open()
    request = pb.SendVerificationCodeRequest(idempotency_key="v", recipient=recipient(), code="Qx7Wz9")
    sms = (await desk.stub.SendVerificationCode(request)).sms

    waiting = await desk.kept(sms.sms_id)
    desk.breaker.release()
    desk.later(seconds=61)
    await desk.becomes(sms.sms_id, "SENT")

    assert len(waiting) > 100
    assert b"Qx7Wz9" not in waiting
    assert await desk.kept(sms.sms_id) == b""
    assert "Qx7Wz9" not in str(dict(await desk.row("SELECT * FROM message")))


async def test_a_reminder_waits_here_at_any_horizon(desk: Desk) -> None:
    start_at = daytime(days=400, hour=14)
    request = reminder("r", start_at, before=timedelta(hours=2))
    sms = (await desk.stub.SendAppointmentReminder(request)).sms

    assert sms.status == common.MESSAGE_STATUS_SCHEDULED
    assert sms.scheduled_time.ToDatetime(UTC) == start_at - timedelta(hours=2)
    await desk.until(start_at - timedelta(hours=2))
    await desk.becomes(sms.sms_id, "SENT")
    (text,) = await desk.texts(request.recipient)
    assert text["body"].startswith("Lembrete: Consulta agendada para ")
    assert " às 14h com Dra. Rita" in text["body"]


async def test_a_reminder_asked_for_at_night_waits_for_the_morning(desk: Desk) -> None:
    start_at = daytime(days=2, hour=15)
    sms = (await desk.stub.SendAppointmentReminder(reminder("r", start_at, before=timedelta(hours=16)))).sms

    assert sms.scheduled_time.ToDatetime(UTC) == daytime(days=2, hour=8)
    for answered in (sms, await desk.get(sms.sms_id)):
        assert (answered.waiting_reason, answered.waiting_time) == ("QUIET_HOURS", sms.scheduled_time)


@pytest.mark.parametrize(
    ("start_hour", "before", "evening"),
    [
        (8, timedelta(hours=10), 20.5),
        (7, timedelta(minutes=30), 20.5),
        (6, timedelta(hours=9, minutes=1), 20 + 59 / 60),
    ],
)
async def test_a_reminder_too_early_for_the_morning_is_scheduled_for_the_evening_before(
    desk: Desk, start_hour: int, before: timedelta, evening: float
) -> None:
    start_at = daytime(days=2, hour=start_hour)
    sms = (await desk.stub.SendAppointmentReminder(reminder("r", start_at, before=before))).sms

    assert sms.scheduled_time.ToDatetime(UTC) == daytime(days=1, hour=0) + timedelta(hours=evening)
    held = "" if sms.scheduled_time.ToDatetime(UTC) == start_at - before else "QUIET_HOURS"
    assert (await desk.get(sms.sms_id)).waiting_reason == held


async def test_a_reminder_late_for_its_evening_is_handed_over_an_hour_before_the_start(desk: Desk) -> None:
    start_at = daytime(days=2, hour=8)
    request = reminder("r", start_at, before=timedelta(hours=10))
    sms = (await desk.stub.SendAppointmentReminder(request)).sms
    await desk.until(daytime(days=1, hour=23))
    await asyncio.sleep(1.0)
    at_night = await desk.texts(request.recipient)
    await desk.until(daytime(days=2, hour=7) + timedelta(seconds=1))
    await desk.becomes(sms.sms_id, "SENT")

    assert at_night == []
    assert len(await desk.texts(request.recipient)) == 1


async def test_a_reminder_that_an_outage_pushed_into_the_night_waits_too(desk: Desk) -> None:
    start_at = daytime(days=2, hour=15)
    request = reminder("r", start_at, before=timedelta(hours=19))  # 20:00 the evening before
    sms = (await desk.stub.SendAppointmentReminder(request)).sms
    await desk.until(daytime(days=1, hour=23))
    late = await eventually(lambda: desk.get(sms.sms_id), lambda sms: sms.waiting_reason)
    at_night = await desk.texts(request.recipient)
    await desk.until(daytime(days=2, hour=8) + timedelta(seconds=1))
    await desk.becomes(sms.sms_id, "SENT")

    assert at_night == []
    assert late.waiting_reason == "QUIET_HOURS"
    assert timedelta(0) <= late.waiting_time.ToDatetime(UTC) - daytime(days=2, hour=8) < timedelta(seconds=5)
    assert len(await desk.texts(request.recipient)) == 1


async def test_a_reminder_past_its_appointment_is_expired_and_never_sent(desk: Desk) -> None:
    start_at = daytime(days=1)
    request = reminder("r", start_at, before=timedelta(hours=1))
    sms = (await desk.stub.SendAppointmentReminder(request)).sms
    await desk.until(start_at + timedelta(minutes=1))
    await desk.becomes(sms.sms_id, "EXPIRED")

    assert await desk.texts(request.recipient) == []


async def test_a_canceled_reminder_is_not_sent_and_its_words_are_gone(desk: Desk) -> None:
    start_at = daytime(days=3)
    request = reminder("r", start_at, before=timedelta(hours=1))
    sms = (await desk.stub.SendAppointmentReminder(request)).sms
    first = await desk.stub.CancelSms(pb.CancelSmsRequest(appointment_id="apt-1"))
    again = await desk.stub.CancelSms(pb.CancelSmsRequest(sms_id=sms.sms_id))
    await desk.until(start_at - timedelta(minutes=30))
    await asyncio.sleep(0.5)

    assert [(first.canceled_count, first.too_late_count), (again.canceled_count, again.too_late_count)] == [
        (1, 0), (0, 0)
    ]  # fmt: skip
    assert (await desk.get(sms.sms_id)).status == common.MESSAGE_STATUS_CANCELED
    assert await desk.kept(sms.sms_id) == b""
    assert await desk.texts(request.recipient) == []


async def test_what_was_handed_over_is_too_late_to_cancel_and_receipts_stay(desk: Desk) -> None:
    request = pb.SendAppointmentConfirmationRequest(
        idempotency_key="c", recipient=recipient(), appointment=appointment()
    )
    sms = (await desk.stub.SendAppointmentConfirmation(request)).sms
    await desk.becomes(sms.sms_id, "SENT")

    answer = await desk.stub.CancelSms(pb.CancelSmsRequest(appointment_id="apt-1"))

    assert (answer.canceled_count, answer.too_late_count) == (0, 1)
    await refused(desk.stub.CancelSms(pb.CancelSmsRequest()), InvalidRequest)
    await refused(desk.stub.CancelSms(pb.CancelSmsRequest(sms_id="sms_none")), NotFound)
    await refused(desk.stub.GetSms(pb.GetSmsRequest(sms_id="sms_none")), NotFound)


@pytest.mark.parametrize(
    ("to", "status", "reason", "code"),
    [
        (OPTED_OUT, "SUPPRESSED", "PROVIDER_REJECTED", "21610"),
        (LANDLINE_AT_TWILIO, "FAILED", "PROVIDER_REFUSED_INPUT", "21614"),
        ("+15005550003", "FAILED", "PROVIDER_REJECTED", "21408"),
    ],
)
async def test_a_refusal_for_good_ends_a_text(desk: Desk, to: str, status: str, reason: str, code: str) -> None:
    before = len(await desk.requests(to))
    sms = (await desk.stub.SendSms(custom(recipient=to))).sms
    ended = await desk.becomes(sms.sms_id, status)

    assert ended.failure_reason == reason
    assert code in ended.history[-1].detail
    assert len(await desk.requests(to)) == before + 1


async def test_trouble_at_twilio_loses_nothing(desk: Desk) -> None:
    await desk.fault(kind="throttle", retry_after=1, times=1)
    request = custom()
    sms = (await desk.stub.SendSms(request)).sms
    await desk.becomes(sms.sms_id, "SENT")

    assert [entry["status"] for entry in await desk.requests(request.recipient)] == [429, 201]


async def test_refused_credentials_pause_the_queue_and_keep_every_text(desk: Desk) -> None:
    await desk.fault(kind="status", status=401, times=1)
    sms = (await desk.stub.SendSms(custom())).sms
    rate_limit = await eventually(
        lambda: desk.row("SELECT MAX(reason) AS reason FROM rate_limit"), lambda row: row["reason"]
    )
    other = (await desk.stub.SendSms(custom("k2"))).sms
    await asyncio.sleep(0.3)

    assert rate_limit["reason"] == "PROVIDER_CREDENTIALS"
    held = await desk.get(other.sms_id)
    assert (held.status, held.waiting_reason) == (common.MESSAGE_STATUS_QUEUED, "PROVIDER_CREDENTIALS")
    assert held.waiting_time.ToDatetime(UTC) > held.create_time.ToDatetime(UTC)
    desk.later(seconds=61)
    await desk.becomes(sms.sms_id, "SENT")
    await desk.becomes(other.sms_id, "SENT")


async def test_a_lost_answer_is_found_out_at_twilio_and_not_sent_again(desk: Desk) -> None:
    await desk.fault(kind="reset", after=True, path="Messages", times=1)
    request = custom()
    sms = (await desk.stub.SendSms(request)).sms
    found = await desk.becomes(sms.sms_id, "SENT")

    (text,) = await desk.texts(request.recipient)
    assert found.provider_message_id == text["sid"]
    assert len(await desk.requests(request.recipient)) == 1


async def test_the_same_words_sent_before_prove_nothing(desk: Desk) -> None:
    to = recipient()
    first = (await desk.stub.SendSms(custom("first", recipient=to))).sms
    await desk.becomes(first.sms_id, "SENT")
    await desk.fault(kind="reset", times=1)
    second = (await desk.stub.SendSms(custom("second", recipient=to))).sms
    unknown = await desk.becomes(second.sms_id, "UNKNOWN")
    for seconds in (0, 11, 31, 31, 31, 31):  # twice as often as it takes: a busy machine may sleep through one
        desk.later(seconds=seconds)
        await asyncio.sleep(1.2 if seconds == 0 else 0.5)
    sent = await desk.becomes(second.sms_id, "SENT")

    assert unknown.provider_message_id == ""
    assert len(await desk.texts(to)) == 2
    assert sent.provider_message_id not in {"", first.provider_message_id}


async def test_an_answer_lost_is_waited_for_a_minute_before_it_counts_as_no(desk: Desk) -> None:
    await desk.fault(kind="reset", times=1)
    request = custom()
    sms = (await desk.stub.SendSms(request)).sms
    await eventually(lambda: desk.row("SELECT * FROM message"), lambda row: row["outcome_unknown_since"])
    for _ in range(2):
        desk.later(seconds=20)
        await asyncio.sleep(0.5)

    assert len(await desk.requests(request.recipient)) == 1
    waiting = await desk.get(sms.sms_id)
    assert (waiting.failure_reason, waiting.waiting_reason) == ("", "OUTCOME_UNKNOWN")
    desk.later(seconds=45)
    sent = await desk.becomes(sms.sms_id, "SENT")
    assert len(await desk.texts(request.recipient)) == 1
    assert sent.failure_reason == ""


async def test_a_code_whose_answer_was_lost_is_asked_about_and_not_waited_for(desk: Desk) -> None:
    await desk.fault(kind="reset", times=1)
    request = pb.SendVerificationCodeRequest(idempotency_key="v", recipient=recipient(), code="493021")
    sms = (await desk.stub.SendVerificationCode(request)).sms
    await desk.becomes(sms.sms_id, "SENT", wait=5)

    assert len(await desk.texts(request.recipient)) == 1
    assert len(await desk.requests(request.recipient)) == 2


async def test_a_code_that_could_not_leave_in_ten_minutes_is_expired(desk: Desk) -> None:
    desk.breaker.force_open()
    request = pb.SendVerificationCodeRequest(idempotency_key="v", recipient=recipient(), code="493021")
    sms = (await desk.stub.SendVerificationCode(request)).sms
    desk.later(minutes=11)
    desk.breaker.release()
    await desk.becomes(sms.sms_id, "EXPIRED")

    assert await desk.texts(request.recipient) == []
    assert await desk.kept(sms.sms_id) == b""


async def test_a_callback_proves_what_a_lost_answer_was(desk: Desk) -> None:
    await desk.fault(kind="reset", times=1)
    request = custom()
    sms = (await desk.stub.SendSms(request)).sms
    await desk.becomes(sms.sms_id, "UNKNOWN")
    result = await desk.callback(sms, "sent", event_id="e1", MessageSid="SM" + "a" * 32)
    desk.later(minutes=5)
    await asyncio.sleep(1.0)

    assert result.outcome == common.EVENT_OUTCOME_APPLIED
    assert (await desk.get(sms.sms_id)).provider_message_id == "SM" + "a" * 32
    assert len(await desk.requests(request.recipient)) == 1


async def test_callbacks_in_any_order_and_twice_move_a_text_only_forward(desk: Desk) -> None:
    sms = await desk.becomes((await desk.stub.SendSms(custom())).sms.sms_id, "SENT")
    results = [
        await desk.callback(sms, "delivered", event_id="e1"),
        await desk.callback(sms, "delivered", event_id="e1"),
        await desk.callback(sms, "sent", event_id="e2"),
        await desk.callback(sms, "received", event_id="e3"),
        await desk.callback(pb.Sms(provider_message_id="SM" + "f" * 32), "delivered", event_id="e4"),
        await desk.callback(pb.Sms(sms_id=sms.sms_id), "delivered", event_id="e5"),
    ]

    assert [common.EventOutcome.Name(result.outcome).removeprefix("EVENT_OUTCOME_") for result in results] == [
        "APPLIED", "DUPLICATE", "STALE", "IGNORED_FOREIGN", "IGNORED_FOREIGN", "REJECTED"
    ]  # fmt: skip
    delivered = await desk.get(sms.sms_id)
    assert delivered.status == common.MESSAGE_STATUS_DELIVERED
    assert len(delivered.history) == 3


@pytest.mark.parametrize(
    ("statuses", "ends"),
    [
        (["undelivered", "delivered"], "DELIVERED"),
        (["delivered", "undelivered"], "DELIVERED"),
        (["undelivered", "sent", "read"], "DELIVERED"),
        (["failed", "delivered", "undelivered"], "DELIVERED"),
        (["sent", "undelivered", "queued"], "UNDELIVERED"),
    ],
)
async def test_status_does_not_depend_on_the_order_of_callbacks(desk: Desk, statuses: list[str], ends: str) -> None:
    sms = await desk.becomes((await desk.stub.SendSms(custom())).sms.sms_id, "SENT")
    for number, word in enumerate(statuses):
        code = {"ErrorCode": "30003"} if word in {"undelivered", "failed"} else {}
        await desk.callback(sms, word, event_id=f"e{number}", **code)
    ended = await desk.get(sms.sms_id)

    assert common.MessageStatus.Name(ended.status) == f"MESSAGE_STATUS_{ends}"
    assert ended.failure_reason == ("" if ends == "DELIVERED" else "PROVIDER_REJECTED")


@pytest.mark.parametrize(("before", "hour"), [(16, 8), (10, 8), (14, 8)])
async def test_reminder_held_for_the_night_says_so(desk: Desk, before: int, hour: int) -> None:
    start_at = daytime(days=2, hour=15)
    sms = (await desk.stub.SendAppointmentReminder(reminder("r", start_at, before=timedelta(hours=before)))).sms
    stored = await desk.get(sms.sms_id)

    assert sms.waiting_reason == stored.waiting_reason == "QUIET_HOURS"
    assert stored.waiting_time.ToDatetime(UTC) == stored.scheduled_time.ToDatetime(UTC) == daytime(days=2, hour=hour)


async def test_waiting_text_says_what_holds_it_back(desk: Desk) -> None:
    desk.breaker.force_open()
    code = pb.SendVerificationCodeRequest(idempotency_key="v", recipient=recipient(), code="493021")
    held = [
        (await desk.stub.SendSms(custom())).sms,
        (await desk.stub.SendVerificationCode(code)).sms,
        (await desk.stub.SendAppointmentReminder(reminder("r", daytime(days=9), before=timedelta(hours=2)))).sms,
    ]
    reasons = [(await desk.get(sms.sms_id)).waiting_reason for sms in held]
    desk.breaker.release()
    desk.later(seconds=61)
    sent = await desk.becomes(held[0].sms_id, "SENT")

    assert reasons == ["BREAKER_OPEN", "BREAKER_OPEN", ""]  # the last one waits for its own time
    assert (sent.waiting_reason, sent.HasField("waiting_time")) == ("", False)


async def test_an_undelivered_text_says_why(desk: Desk) -> None:
    sms = await desk.becomes((await desk.stub.SendSms(custom())).sms.sms_id, "SENT")
    await desk.callback(sms, "undelivered", event_id="e1", ErrorCode="30003")
    ended = await desk.get(sms.sms_id)

    assert ended.status == common.MESSAGE_STATUS_UNDELIVERED
    assert (ended.failure_reason, ended.history[-1].detail) == ("PROVIDER_REJECTED", "Twilio 30003")


async def test_too_many_events_or_bytes_are_refused_whole(desk: Desk) -> None:
    many = [common.ProviderEvent(event_id=f"e{number}") for number in range(101)]
    large = [common.ProviderEvent(event_id="e", body=b"x" * (2 << 20)), common.ProviderEvent(event_id="f", body=b"x")]
    for events in (many, large, []):
        await refused(desk.admin.ApplyEvents(pb.ApplyEventsRequest(events=events)), InvalidRequest)


async def test_a_service_killed_between_twilio_s_yes_and_its_own_note_texts_once(box: Sandbox, tmp_path: Path) -> None:
    settings = settings_of(box, f"sqlite:///{tmp_path}/sms.db")
    request = custom()
    async with aiohttp.ClientSession(box.url) as http:
        fault = {"provider": "twilio", "kind": "hang_after_accepting", "seconds": 30, "path": "Messages", "times": 1}
        async with http.post("/_sandbox/faults", json=fault):
            pass
        with process("services.sms", settings) as running:
            async with grpc.aio.insecure_channel(running.listening["grpc"]) as channel:
                sms = (await SmsServiceStub(channel).SendSms(request)).sms
            await eventually(lambda: texts(http, request.recipient))
            running.kill()
            logged = running.lines
        with process("services.sms", settings) as running:
            async with grpc.aio.insecure_channel(running.listening["grpc"]) as channel:
                stub: SmsServiceAsyncStub = SmsServiceStub(channel)
                read = pb.GetSmsRequest(sms_id=sms.sms_id)
                found = await eventually(
                    lambda: stub.GetSms(read), lambda got: got.sms.status == common.MESSAGE_STATUS_SENT
                )
            assert running.end() == 0
            logged = logged + running.lines
        (text,) = await texts(http, request.recipient)
        async with http.delete("/_sandbox/faults"):
            pass

    assert found.sms.provider_message_id == text["sid"]
    assert not [line for line in logged if request.recipient[-8:] in line or "Ana" in line or "token" in line]


async def texts(http: aiohttp.ClientSession, to: str) -> list[dict[str, Any]]:
    async with http.get("/_sandbox/messages?provider=twilio") as answer:
        return [text for text in (await answer.json())["messages"] if text["to"] == to]


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
    desk: Desk, schedule: dict[str, timedelta]
) -> None:
    ((field, length),) = schedule.items()
    too_late, in_time = (
        reminder("no notice", datetime(2030, 3, 14, 17, 30, tzinfo=UTC)),
        reminder("in time", datetime(2030, 3, 14, 17, 30, tzinfo=UTC)),
    )
    for request, notice in ((too_late, length), (in_time, timedelta(minutes=1))):
        if field == "before":
            request.before.FromTimedelta(notice)
        else:
            request.send_time.FromDatetime(request.appointment.start_time.ToDatetime(UTC) - notice)

    error = await refused(desk.stub.SendAppointmentReminder(too_late), InvalidRequest)
    assert [(each.field, each.reason) for each in error.violations] == [(field, "NOT_BEFORE_START")]
    assert (await desk.stub.SendAppointmentReminder(in_time)).sms.sms_id

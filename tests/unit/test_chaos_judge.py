"""The judge finds each kind of broken promise, and nothing where all were kept."""

from __future__ import annotations

from dataclasses import replace

import pytest

from chaos.evidence import Evidence, Freeze, Intent, LeftJob, Post, RecordStatus, Webhook
from chaos.judge import counted, judge
from chaos.operations import Operation

AT = 1_000_000.0


def text(**more: object) -> Operation:
    fields = {
        "phone": "+5511960000001",
        "ids": {"sms": "sms_1"},
        "returned": [{"sms": "sms_1"}],
        "answered_at": AT,
        **more,
    }
    return Operation("text-1", "text", "grpc", "apt-1", **fields)  # type: ignore[arg-type]  # the fields' own types


def payment(key: str, payment_id: str) -> Operation:
    ids = {"payments": payment_id}
    operation = Operation(key, "payment", "http", "apt-1", f"{key}@example.com", f"+55119{len(key):08}")
    operation.ids, operation.returned, operation.answered_at = ids, [ids], AT
    return operation


def post(attempt: int, at: float, object_id: str) -> Post:
    return Post("twilio", attempt, at, object_id, "sms_1", attempt, "+5511960000001")


def verdicts(evidence: Evidence) -> set[tuple[str, str]]:
    return {(finding.verdict, finding.rule) for finding in judge(evidence)}


KEPT = Evidence([text()], [post(1, AT, "SM1")], texts={"sms_1": RecordStatus("DELIVERED")})
DELIVERED = Webhook("twilio", "delivered", "SM1", "sms_1", "told", AT + 1)


def test_says_nothing_where_every_promise_was_kept() -> None:
    assert not judge(KEPT)


def test_a_caller_who_was_never_answered_is_stuck() -> None:
    waiting = text(ids={}, returned=[], answered_at=None)
    assert verdicts(Evidence([waiting])) == {("stuck", "a repeated key is answered")}


def test_a_text_that_was_accepted_and_never_sent_is_lost() -> None:
    gone = replace(KEPT, posts=[], texts={"sms_1": RecordStatus("NOT_FOUND")})
    assert verdicts(gone) == {("lost", "an accepted message is stored")}
    assert verdicts(replace(KEPT, posts=[])) == {("lost", "a sent message is at its provider")}


def test_a_text_sent_twice_is_doubled() -> None:
    twice = replace(KEPT, posts=[post(1, AT, "SM1"), post(2, AT + 20, "SM2")])
    assert verdicts(twice) == {("doubled", "nobody is mailed or texted twice")}


def test_a_text_sent_twice_is_excused_by_a_freeze_only_if_it_spans_the_late_act() -> None:
    late = [post(2, AT + 22, "SM2"), post(1, AT + 30, "SM1")]
    slept = Freeze("sms-1", AT - 1, AT + 29.5)
    excused = replace(KEPT, posts=late, freezes=[slept], claims={("sms_1", 1): frozenset({"sms-1"})})
    assert {verdict for verdict, _ in verdicts(excused)} == {"allowed"}
    for freeze in (replace(slept, name="sms-2"), replace(slept, ended=AT + 10), replace(slept, began=AT + 24)):
        assert {verdict for verdict, _ in verdicts(replace(excused, freezes=[freeze]))} == {"doubled"}


def test_an_event_answered_with_200_and_not_known_is_lost() -> None:
    deaf = replace(KEPT, webhooks=[DELIVERED], texts={"sms_1": RecordStatus("SENT")})
    assert verdicts(deaf) == {("lost", "a webhook answered with 200 counts")}
    assert not judge(replace(KEPT, webhooks=[DELIVERED]))


def test_an_event_that_is_never_taken_is_stuck() -> None:
    refused = replace(KEPT, webhooks=[replace(DELIVERED, state="waiting", told_at=None)])
    assert verdicts(refused) == {("stuck", "webhooks are taken in the end")}


def test_two_charges_for_one_key_are_doubled() -> None:
    intents = [Intent(id, "requires_action", "pay_1", "k-1") for id in ("pi_1", "pi_2")]
    twice = Evidence([payment("k-1", "pay_1")], intents=intents, payments={"pay_1": RecordStatus("AWAITING_CUSTOMER")})
    assert verdicts(twice) == {("doubled", "one key, one charge")}


def test_two_open_payments_of_one_appointment_are_doubled() -> None:
    operations = [payment("k-1", "pay_1"), payment("key-2", "pay_2")]
    intents = [Intent(f"pi_{o.key}", "requires_action", o.ids["payments"], o.key) for o in operations]
    standings = {o.ids["payments"]: RecordStatus("AWAITING_CUSTOMER") for o in operations}
    found = verdicts(Evidence(operations, intents=intents, payments=standings))
    assert found == {("doubled", "one open payment an appointment")}


def test_who_has_paid_and_was_not_told_has_lost_something() -> None:
    paid = Evidence(
        [payment("k-1", "pay_1")],
        intents=[Intent("pi_1", "succeeded", "pay_1", "k-1")],
        payments={"pay_1": RecordStatus("SUCCEEDED")},
    )
    assert verdicts(paid) == {("lost", "who has paid is told")}


def test_a_payment_that_stands_otherwise_than_at_stripe_is_wrong() -> None:
    behind = Evidence(
        [payment("k-1", "pay_1")],
        intents=[Intent("pi_1", "succeeded", "pay_1", "k-1")],
        payments={"pay_1": RecordStatus("AWAITING_CUSTOMER")},
    )
    assert verdicts(behind) == {("wrong", "a payment stands as Stripe says")}


@pytest.mark.parametrize("state", ["dropped", "waiting", "delivered"])
def test_a_payment_that_no_webhook_told_of_is_wrong_all_the_same(state: str) -> None:
    unheard = Webhook("stripe", "payment_intent.succeeded", "evt_1", "pay_1", state, None)
    behind = Evidence(
        [payment("k-1", "pay_1")],
        intents=[Intent("pi_1", "succeeded", "pay_1", "k-1")],
        payments={"pay_1": RecordStatus("AWAITING_CUSTOMER")},
        webhooks=[unheard],
    )
    assert ("wrong", "a payment stands as Stripe says") in verdicts(behind)


def test_the_next_reading_of_an_open_payment_is_not_left_behind() -> None:
    ahead = LeftJob("payments", "stripe", "pay_1/read/1", "queued", "", 0, 0, 45.0)
    assert verdicts(replace(KEPT, jobs=[ahead])) == set()
    for late in (replace(ahead, due_in=-1.0), replace(ahead, state="running"), replace(ahead, note="BREAKER_OPEN")):
        assert verdicts(replace(KEPT, jobs=[late])) == {("stuck", "queues are empty in the end")}


def test_jobs_left_behind_are_lost_or_stuck() -> None:
    left = LeftJob("sms", "sms", "sms_1", "dead", "CRASHES", 3, 0, -5.0)
    assert verdicts(replace(KEPT, jobs=[left])) == {("lost", "no job is given up")}
    assert verdicts(replace(KEPT, jobs=[replace(left, state="running")])) == {("stuck", "queues are empty in the end")}


def test_one_thing_lost_counts_once_however_many_rules_see_it() -> None:
    unheard = replace(KEPT, posts=[], jobs=[LeftJob("sms", "sms", "text-1", "dead", "", 1, 0, 0.0)])
    assert counted(judge(unheard)) == {"lost": 1, "doubled": 0, "stuck": 0, "wrong": 0, "allowed": 0}

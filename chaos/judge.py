"""
What callers were told, against what happened: the promises, one rule each.

Knows nothing of how the services work: only what they promise, what they answer and what reached the providers.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

from chaos.evidence import Evidence, Intent, Post, RecordStatus, Webhook
from chaos.operations import Operation

#: allowed: what ARCHITECTURE's failure table says may happen, with the proof that it was that.
Verdict = Literal["lost", "doubled", "stuck", "wrong", "allowed"]

#: Stripe's word for a payment, and ours.
STATUSES = {
    "requires_payment_method": {"AWAITING_METHOD"},
    "requires_confirmation": {"AWAITING_CUSTOMER"},
    "requires_action": {"AWAITING_CUSTOMER"},
    "processing": {"PROCESSING"},
    "requires_capture": {"AUTHORIZED"},
    "succeeded": {"SUCCEEDED"},
    "canceled": {"CANCELED"},
}
#: Seconds after which an email without any event of its provider may be sent again.
NO_EVENT_FOR = 600.0
#: Seconds that a claim outlasts the act it begins: a freeze that spans an act and lets it happen twice is longer.
ACT = 8.0
#: Seconds by which the judge's clocks and the order of a log may differ.
NEARLY = 2.0


@dataclass(frozen=True)
class Finding:
    verdict: Verdict
    rule: str
    #: Ids to look for in logs and ledgers, the caller's key first where there is one.
    about: tuple[str, ...]
    sentence: str


def judge(evidence: Evidence) -> list[Finding]:
    case = Case(evidence)
    return [
        *case.callers_are_answered(),
        *case.charges_happen_once(),
        *case.payments_are_known(),
        *case.receipts_arrive(),
        *case.messages_arrive_once(),
        *case.acknowledged_events_are_known(),
        *case.queues_are_empty(),
    ]


class Case:
    """The evidence, sorted by what the rules ask for."""

    def __init__(self, evidence: Evidence) -> None:
        self._evidence = evidence
        self._posts: dict[str, list[Post]] = defaultdict(list)  # by recipient
        for post in sorted(evidence.posts, key=lambda post: post.at):
            self._posts[post.recipient].append(post)
        self._webhooks: dict[str, list[Webhook]] = defaultdict(list)  # by what they are about
        for webhook in evidence.webhooks:
            self._webhooks[webhook.about].append(webhook)

    def callers_are_answered(self) -> Iterator[Finding]:
        for operation in self._evidence.operations:
            about = (operation.key, *operation.ids.values())
            if not operation.answered:
                detail = f"asked {operation.tries} times and never answered; last: {operation.last_trouble}"
                yield Finding("stuck", "a repeated key is answered", about, detail)
            elif operation.refusal and not self._beaten(operation):
                yield Finding("wrong", "what is right is not refused", about, f"refused: {operation.refusal}")
            for bug in set(operation.bugs):
                yield Finding("wrong", "INTERNAL is a bug", about, f"was told {bug}")
            for service in ("payments", "email", "sms"):
                ids = {returned[service] for returned in operation.returned if service in returned}
                if len(ids) > 1:
                    detail = f"its key was answered with {' and '.join(sorted(ids))}"
                    yield Finding("doubled", "a repeated key is the same thing", (operation.key, *sorted(ids)), detail)

    def _beaten(self, operation: Operation) -> bool:
        """Whether another click has opened the payment that this one was told of."""
        others = [o for o in self._evidence.operations if o.appointment == operation.appointment and o is not operation]
        return "PAYMENT_OPEN" in operation.refusal and any(other.ids for other in others)

    def charges_happen_once(self) -> Iterator[Finding]:
        by_key: dict[str, list[Intent]] = defaultdict(list)
        for intent in self._evidence.intents:
            by_key[intent.caller_key].append(intent)
        for key, intents in by_key.items():
            if len(intents) > 1:
                ids = tuple(intent.id for intent in intents)
                yield Finding("doubled", "one key, one charge", (key, *ids), f"Stripe has {len(ids)} charges for it")
        opened: dict[str, list[Operation]] = defaultdict(list)
        for operation in self._evidence.operations:
            if operation.kind == "payment" and operation.ids:
                opened[operation.appointment].append(operation)
        for appointment, operations in opened.items():
            if len({operation.ids["payments"] for operation in operations}) > 1:
                keys = tuple(operation.key for operation in operations)
                detail = f"two clicks opened {len(operations)} payments for {appointment}"
                yield Finding("doubled", "one open payment an appointment", keys, detail)

    def payments_are_known(self) -> Iterator[Finding]:
        """Every charge at Stripe is a payment here with the same standing, and the other way round."""
        intents = {intent.payment_id: intent for intent in self._evidence.intents}
        for operation in self._evidence.operations:
            payment_id = operation.ids.get("payments")
            if payment_id and payment_id not in intents:
                detail = "its caller has a payment of which Stripe knows nothing"
                yield Finding("lost", "an answered payment is at Stripe", (operation.key, payment_id), detail)
        for payment_id, standing in self._evidence.payments.items():
            intent = intents.get(payment_id)
            if intent is None:
                continue
            about = (intent.caller_key, payment_id, intent.id)
            if standing.status == "NOT_FOUND":
                yield Finding("lost", "a charge has its payment", about, "Stripe has it, payments does not know it")
            elif standing.status not in STATUSES[intent.status]:
                yield self._behind(about, payment_id, standing, intent)

    def _behind(self, about: tuple[str, ...], payment_id: str, standing: RecordStatus, intent: Intent) -> Finding:
        detail = f"{standing.status} here, {intent.status} at Stripe"
        telling = [w for w in self._webhooks[payment_id] if w.subject == f"payment_intent.{intent.status}"]
        if standing.status in {"CREATING", "UNKNOWN"}:
            return Finding("stuck", "the outcome is found out", about, detail)
        if any(webhook.told_at for webhook in telling):
            return Finding(
                "lost", "a webhook answered with 200 counts", about, f"{detail}; its event was taken with a 200"
            )
        return Finding("wrong", "a payment stands as Stripe says", about, detail)

    def receipts_arrive(self) -> Iterator[Finding]:
        for operation in self._evidence.operations:
            payment_id = operation.ids.get("payments", "")
            standing = self._evidence.payments.get(payment_id)
            if operation.kind != "payment" or standing is None:
                continue
            for recipient, what in ((operation.email, "mail"), (operation.phone, "text")):
                posts = self._posts[recipient]
                about = (operation.key, payment_id, *(post.message_id for post in posts))
                if standing.status == "SUCCEEDED" and not posts:
                    yield Finding("lost", "who has paid is told", about, f"SUCCEEDED, and no {what} was ever sent")
                elif standing.status != "SUCCEEDED" and posts:
                    yield Finding(
                        "wrong", "who has not paid is not told", about, f"{standing.status}, and a {what} was sent"
                    )
                elif posts:
                    yield from self._repetitions(operation, posts)

    def messages_arrive_once(self) -> Iterator[Finding]:
        for operation in self._evidence.operations:
            for service, recipient in (("email", operation.email), ("sms", operation.phone)):
                message_id = operation.ids.get(service)
                if message_id is None:
                    continue
                standings = self._evidence.emails if service == "email" else self._evidence.texts
                posts = self._posts[recipient]
                yield from self._arrived(operation, message_id, standings[message_id], posts)
                yield from self._repetitions(operation, posts)

    def _arrived(
        self, operation: Operation, id: str, standing: RecordStatus, posts: Sequence[Post]
    ) -> Iterator[Finding]:
        about = (operation.key, id)
        early = [post for post in posts if operation.due_at and post.at < operation.due_at - NEARLY]
        if early:
            detail = f"was sent {operation.due_at - early[0].at:.0f} s too early"
            yield Finding("wrong", "a reminder waits for its time", about, detail)
        if standing.status == "NOT_FOUND":
            yield Finding("lost", "an accepted message is stored", about, "its caller has an id that nobody knows")
        elif posts and standing.status in {"SENT", "DELIVERED"}:
            return
        elif not posts and standing.status == "SCHEDULED":
            return  # its time has not come; the queue's own rule looks at what is overdue
        elif posts:
            yield Finding("wrong", "a sent message says so", about, f"{standing.status}, though its provider has it")
        elif standing.status in {"SENT", "DELIVERED"}:
            yield Finding("lost", "a sent message is at its provider", about, f"{standing.status}, and never sent")
        elif standing.status in {"EXPIRED", "FAILED", "SUPPRESSED", "CANCELED"}:
            detail = f"accepted, and ended as {standing.status} {standing.reason} without being sent"
            yield Finding("lost", "an accepted message is sent", about, detail)
        else:
            yield Finding("stuck", "an accepted message is sent", about, f"still {standing.status}, and not sent")

    def _repetitions(self, operation: Operation, posts: Sequence[Post]) -> Iterator[Finding]:
        if len({post.message_id for post in posts}) > 1:
            about = (operation.key, *(post.message_id for post in posts))
            yield Finding("doubled", "one key, one message", about, f"{len(posts)} messages were made of it")
        for first, again in pairwise(posts):
            if first.message_id != again.message_id:
                continue
            excuse = self._excuse(operation, first, again)
            detail = f"claim {first.attempt} sent it, and claim {again.attempt} again {again.at - first.at:.1f} s later"
            yield Finding(
                "allowed" if excuse else "doubled",
                excuse or "nobody is mailed or texted twice",
                (operation.key, first.message_id, first.object_id, again.object_id),
                detail,
            )

    def _excuse(self, operation: Operation, first: Post, again: Post) -> str:
        """Name the row of the failure table that says so; empty: none does."""
        if operation.kind == "code":
            return "a verification code may be sent twice"
        if self._frozen_in_the_act(first, again):
            return "a worker frozen between mark_attempted and the POST may send twice"
        if first.provider == "sendgrid" and self._unheard_of(first, again):
            return "a mail without an event for ten minutes is sent again"
        return ""

    def _frozen_in_the_act(self, first: Post, again: Post) -> bool:
        """Whether the late one of the two came out of a process that slept over its claim, and whose log says so."""
        late = again if again.attempt < first.attempt else None
        if late is None:
            return False
        names = self._evidence.claims.get((late.message_id, late.attempt), frozenset())
        return any(
            freeze.name in names
            and freeze.ended - freeze.began > ACT
            and freeze.began < first.at
            and -NEARLY < late.at - freeze.ended < ACT + NEARLY
            for freeze in self._evidence.freezes
        )

    def _unheard_of(self, first: Post, again: Post) -> bool:
        """Whether no event of the first was taken, for ten minutes or until these were over."""
        waited = again.at - first.at >= NO_EVENT_FOR or first.at < self._evidence.waited_out_at < again.at + NEARLY
        events = [webhook for webhook in self._webhooks[first.message_id] if webhook.object_id == first.object_id]
        return waited and not any(event.told_at and event.told_at < again.at for event in events)

    def acknowledged_events_are_known(self) -> Iterator[Finding]:
        """What a provider was told "taken" about is known to the service: a message's delivery here."""
        keys = {id: operation.key for operation in self._evidence.operations for id in operation.ids.values()}
        for provider, standings in (("sendgrid", self._evidence.emails), ("twilio", self._evidence.texts)):
            for id, standing in standings.items():
                delivered = any(
                    w.provider == provider and w.subject == "delivered" and w.told_at for w in self._webhooks[id]
                )
                if delivered and standing.status != "DELIVERED":
                    detail = f"{standing.status}, though the event of its delivery was taken with a 200"
                    yield Finding("lost", "a webhook answered with 200 counts", (keys.get(id, ""), id), detail)
        for webhook in self._evidence.webhooks:
            if webhook.state == "waiting":
                detail = f"{webhook.provider}'s {webhook.subject} of {webhook.object_id} was never taken"
                yield Finding("stuck", "webhooks are taken in the end", (webhook.about, webhook.object_id), detail)

    def queues_are_empty(self) -> Iterator[Finding]:
        for job in self._evidence.jobs:
            where = f"{job.process}'s queue {job.queue}"
            if job.state == "dead":
                detail = f"{where} gave it up: {job.note or 'no reason noted'}, after {job.claims} claims"
                yield Finding("lost", "no job is given up", (job.id,), detail)
            elif "/read/" in job.id and job.state == "queued" and not job.note and job.due_in > 0:
                continue  # an open payment always has a reading ahead
            elif job.state == "running" or job.due_in < 60 or job.note not in {"", "QUIET_HOURS"}:
                detail = (
                    f"{where} still has it {job.state} ({job.note or 'no trouble noted'}), due in {job.due_in:.0f} s"
                )
                yield Finding("stuck", "queues are empty in the end", (job.id,), detail)


def counted(findings: Sequence[Finding]) -> Mapping[str, int]:
    """By verdict; what is lost in several rules' eyes is one thing lost."""
    subjects: dict[str, set[str]] = {verdict: set() for verdict in ("lost", "doubled", "stuck", "wrong", "allowed")}
    for finding in findings:
        subjects[finding.verdict].add(next((part for part in finding.about if part), finding.sentence))
    return {verdict: len(found) for verdict, found in subjects.items()}

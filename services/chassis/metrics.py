"""All metrics, so that alert rules can be written from one file."""

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from prometheus_client import Counter, Gauge, Histogram

# The last bucket is the default deadline of a caller that sets none.
SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)

rpc_seconds = Histogram("topsmile_rpc_seconds", "RPCs answered", ["method", "code"], buckets=SECONDS)
rpcs_running = Gauge("topsmile_rpcs_running", "Running unary RPCs")
streams_open = Gauge("topsmile_streams_open", "Open streams, health watches included")
rpcs_shed_total = Counter(
    "topsmile_rpcs_shed_total", "RPCs refused because too many ran or one caller sent too many", ["reason"]
)
credentials_refused_total = Counter(
    "topsmile_credentials_refused_total", "RPCs refused for their token, certificate or scopes", ["reason"]
)

http_requests_total = Counter("topsmile_http_requests_total", "HTTP requests answered", ["route", "method", "status"])
http_seconds = Histogram("topsmile_http_seconds", "Seconds of an HTTP request", ["route"], buckets=SECONDS)

webhooks_rejected_total = Counter(
    "topsmile_webhooks_rejected_total", "Webhooks refused, by reason", ["provider", "reason"]
)

outbound_seconds = Histogram(
    "topsmile_outbound_seconds", "Calls to a provider", ["service", "outcome"], buckets=SECONDS
)
provider_unexpected_total = Counter(
    "topsmile_provider_unexpected_total", "Responses and events without a documented form", ["service", "what"]
)
breaker_state = Gauge("topsmile_breaker_state", "0 closed, 1 half open, 2 open", ["target"])

jobs_total = Counter("topsmile_jobs_total", "Jobs run, by outcome", ["queue", "outcome"])
queue_live = Gauge("topsmile_queue_live", "Jobs not finished", ["queue", "state"])
queue_dead = Gauge("topsmile_queue_dead", "Dead letters", ["queue"])
queue_oldest_due_seconds = Gauge(
    "topsmile_queue_oldest_due_seconds", "Seconds that the oldest due job has waited", ["queue"]
)
queue_paused = Gauge("topsmile_queue_paused", "1 while a queue is paused for that reason", ["queue", "reason"])

payment_alerts_total = Counter(
    "topsmile_payment_alerts_total",
    "Payments that an operator must check: paid twice, or with another amount",
    ["alert"],
)

watch_restarts_total = Counter(
    "topsmile_watch_restarts_total",
    "Watches of payments that began without the stored cursor, because it was refused",
    ["reason"],
)

#: The last census of each queue in this process, for readiness and status.
queues: dict[str, dict[str, Any]] = {}
_paused_for: dict[str, set[str]] = {}  # by queue: the reasons exported so far, whose series must return to 0


def _time(milliseconds: int) -> str:
    return datetime.fromtimestamp(milliseconds / 1000, UTC).isoformat(timespec="seconds").replace("+00:00", "Z")


def queue_census(queue: str, census: Mapping[str, Any]) -> None:
    """Export a census of a queue; its keys are those of `queue.operations.census`."""
    queues[queue] = {
        **{state: census[state] for state in ("queued", "running", "dead")},
        "oldest_due_seconds": census["oldest_due_ms"] / 1000,
        "paused": census["paused"] or None,
        "paused_until": _time(census["paused_until"]) if census["paused_until"] else None,
    }
    for state in ("queued", "running"):
        queue_live.labels(queue, state).set(census[state])
    queue_dead.labels(queue).set(census["dead"])
    queue_oldest_due_seconds.labels(queue).set(census["oldest_due_ms"] / 1000)
    reasons = _paused_for.setdefault(queue, set())
    reasons |= {census["paused"]} - {""}
    for reason in reasons:
        queue_paused.labels(queue, reason).set(reason == census["paused"])

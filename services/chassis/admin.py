"""
Operate the queues and breakers of one process: python -m services.chassis.admin --target 127.0.0.1:50051 queues

`token` needs no process: it prints a new bearer token and its entry for …_AUTH_TOKENS.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import secrets
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import grpc
from google.protobuf.json_format import MessageToDict
from google.protobuf.message import Message

from services.chassis.rpc.authentication import parse_tokens
from services.chassis.rpc.error_details import from_rpc_error
from topsmile.common.v1 import queue_admin_pb2 as pb
from topsmile.common.v1.queue_admin_pb2_grpc import QueueAdminServiceStub

TIMEOUT = 10.0  # seconds for each call
STATES = ("queued", "running", "done", "dead", "cancelled", "parked")
MODES = {"open": pb.BREAKER_MODE_FORCED_OPEN, "automatic": pb.BREAKER_MODE_AUTOMATIC}
#: Command → the RPC that changes jobs.
CHANGES = {
    "replay": ("ReplayJobs", pb.ReplayJobsRequest, "queue dead letters again"),
    "park": ("ParkJobs", pb.ParkJobsRequest, "set queued jobs and dead letters aside"),
    "unpark": ("UnparkJobs", pb.UnparkJobsRequest, "queue parked jobs again"),
    "discard": ("DiscardJobs", pb.DiscardJobsRequest, "end dead letters for good and erase their payload"),
}

#: Calls an RPC by its name.
Call = Callable[[str, Message], Any]


def parser() -> argparse.ArgumentParser:
    whole = argparse.ArgumentParser(prog="python -m services.chassis.admin", description=__doc__)
    whole.add_argument("--target", default="127.0.0.1:50051", help="the process's gRPC address (default: %(default)s)")
    whole.add_argument("--token-file", type=Path, help="a file that holds a bearer token with the scope admin")
    whole.add_argument("--ca", type=Path, help="the authority of the process's certificate: call over TLS")
    whole.add_argument("--cert", type=Path, help="a client certificate, with --key")
    whole.add_argument("--key", type=Path)
    whole.add_argument("--name", default="", help="the name in the process's certificate, where --target has another")
    whole.add_argument("--json", action="store_true", help="print one JSON object a line instead of a table")
    commands = whole.add_subparsers(dest="command", required=True)

    commands.add_parser("queues", help="count the jobs of each queue")
    jobs = commands.add_parser("jobs", help="list the jobs of a queue, the newest first")
    jobs.add_argument("queue")
    jobs.add_argument("--state", choices=STATES, default="dead", help="(default: %(default)s)")
    jobs.add_argument("--note", default="", help="only jobs with this note")
    jobs.add_argument("--limit", type=int, default=50, help="(default: %(default)s)")
    show = commands.add_parser("show", help="show one job, without its payload")
    show.add_argument("queue")
    show.add_argument("id")
    for name, (_, _, words) in CHANGES.items():
        change = commands.add_parser(name, help=words)
        change.add_argument("queue")
        change.add_argument("id", nargs="*")
        change.add_argument("--all", action="store_true", help="all jobs that fit, instead of ids")
        change.add_argument("--note", default="", help="with --all: only jobs with this note")
        change.add_argument("--reason", required=True, help="why, for the audit")
    for name, words in (("pause", "claim no more jobs of a queue"), ("resume", "end the pauses of a queue")):
        pause = commands.add_parser(name, help=words)
        pause.add_argument("queue")
        pause.add_argument("--provider", default="", help="only this provider of the queue")
        pause.add_argument("--reason", required=True, help="why, for the audit")
        if name == "pause":
            pause.add_argument("--seconds", type=int, help="how long (default: until it is resumed)")
    breakers = commands.add_parser("breakers", help="list the circuit breakers, or set the mode of one")
    breakers.add_argument("breaker", nargs="?")
    breakers.add_argument("mode", nargs="?", choices=MODES)
    breakers.add_argument("--reason", default="", help="why, for the audit")
    audit = commands.add_parser("audit", help="list what operators changed, the newest first")
    audit.add_argument("--of", default="", help="only changes of this queue or breaker")
    audit.add_argument("--by", default="", help="only changes by this caller")
    audit.add_argument("--limit", type=int, default=50, help="(default: %(default)s)")
    token = commands.add_parser("token", help="print a new bearer token and its entry for …_AUTH_TOKENS")
    token.add_argument("caller")
    token.add_argument("--scopes", required=True, help="comma between them: read,send")
    return whole


def new_token(caller: str, scopes: str) -> dict[str, str]:
    """Make a token and its entry for …_AUTH_TOKENS; raises ValueError."""
    token = secrets.token_urlsafe(32)
    entry = f"{caller}:{scopes.replace(',', '+')}:{hashlib.sha256(token.encode()).hexdigest()}"
    parse_tokens(entry)
    return {"token": token, "entry": entry}


def _queues(call: Call, _given: argparse.Namespace) -> Iterator[Message]:
    yield from call("ListQueues", pb.ListQueuesRequest()).queues


def _jobs(call: Call, given: argparse.Namespace) -> Iterator[Message]:
    state = pb.JobState.Value(f"JOB_STATE_{given.state.upper()}")
    request = pb.ListJobsRequest(queue=given.queue, state=state, filter=pb.JobFilter(note=given.note))
    yield from _pages(call, "ListJobs", request, "jobs", given.limit)


def _show(call: Call, given: argparse.Namespace) -> Iterator[Message]:
    yield call("ShowJob", pb.ShowJobRequest(queue=given.queue, job_id=given.id)).job


def _pause(call: Call, given: argparse.Namespace) -> Iterator[Message]:
    request = pb.PauseQueueRequest(queue=given.queue, provider=given.provider, reason=given.reason)
    if given.seconds is not None:
        request.duration.seconds = given.seconds
    yield call("PauseQueue", request).queue


def _resume(call: Call, given: argparse.Namespace) -> Iterator[Message]:
    request = pb.ResumeQueueRequest(queue=given.queue, provider=given.provider, reason=given.reason)
    yield call("ResumeQueue", request).queue


def _breakers(call: Call, given: argparse.Namespace) -> Iterator[Message]:
    if given.mode:
        request = pb.SetBreakerRequest(breaker=given.breaker, mode=MODES[given.mode], reason=given.reason)
        yield call("SetBreaker", request).breaker
    else:
        yield from call("ListBreakers", pb.ListBreakersRequest()).breakers


def _audit(call: Call, given: argparse.Namespace) -> Iterator[Message]:
    request = pb.ListAuditRequest(target=given.of, caller=given.by)
    yield from _pages(call, "ListAudit", request, "entries", given.limit)


def _change(call: Call, given: argparse.Namespace) -> Iterator[Message]:
    """Change jobs, however many calls that takes: a response for each."""
    method, kind, _ = CHANGES[given.command]
    selection = {"filter": pb.JobFilter(note=given.note)} if given.all else {"jobs": pb.JobIds(job_ids=given.id)}
    request: Any = kind(queue=given.queue, reason=given.reason, **selection)
    while True:
        response = call(method, request)
        request.page_token = response.next_page_token
        response.ClearField("next_page_token")
        yield response
        if not request.page_token:
            return


#: Command → what it calls, and the messages that it shows, one a row.
COMMANDS: dict[str, Callable[[Call, argparse.Namespace], Iterator[Message]]] = {
    "queues": _queues,
    "jobs": _jobs,
    "show": _show,
    **dict.fromkeys(CHANGES, _change),
    "pause": _pause,
    "resume": _resume,
    "breakers": _breakers,
    "audit": _audit,
}


def _pages(call: Call, method: str, request: Any, field: str, limit: int) -> Iterator[Message]:
    while limit > 0:
        request.page_size = min(limit, 500)
        response = call(method, request)
        yield from getattr(response, field)
        limit -= request.page_size
        request.page_token = response.next_page_token
        if not request.page_token:
            return


def _row(message: Message) -> dict[str, Any]:
    found: dict[str, Any] = MessageToDict(
        message, preserving_proto_field_name=True, always_print_fields_with_no_presence=True
    )
    return found


def _cell(value: object) -> str:
    if isinstance(value, list):
        return " ".join(map(_cell, value))
    if isinstance(value, dict):
        return ":".join(_cell(part) for part in value.values() if part)
    text = str(value)
    return text.removeprefix("JOB_STATE_").removeprefix("BREAKER_STATE_").removeprefix("BREAKER_MODE_")


def table(found: Sequence[dict[str, Any]]) -> Iterator[str]:
    """Return the lines of a table; a single row has a line for each field."""
    if len(found) == 1:
        width = max(map(len, found[0]))
        yield from (f"{name:<{width}}  {_cell(value)}".rstrip() for name, value in found[0].items())
        return
    names = list(dict.fromkeys(name for row in found for name in row))
    cells = [names, *([_cell(row.get(name, "")) for name in names] for row in found)]
    widths = [max(len(row[column]) for row in cells) for column in range(len(names))]
    for row in cells:
        yield "  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip()


def channel_of(given: argparse.Namespace) -> grpc.Channel:
    if given.ca is None:
        return grpc.insecure_channel(given.target)
    pair = [file.read_bytes() if file else None for file in (given.key, given.cert)]
    name = [("grpc.ssl_target_name_override", given.name)] if given.name else []
    return grpc.secure_channel(given.target, grpc.ssl_channel_credentials(given.ca.read_bytes(), *pair), options=name)


def ask(given: argparse.Namespace) -> list[dict[str, Any]]:
    metadata = (("authorization", f"Bearer {given.token_file.read_text().strip()}"),) if given.token_file else ()
    with channel_of(given) as channel:
        stub = QueueAdminServiceStub(channel)

        def call(method: str, request: Message) -> Any:
            return getattr(stub, method)(request, timeout=TIMEOUT, metadata=metadata)

        return [_row(message) for message in COMMANDS[given.command](call, given)]


def main(arguments: Sequence[str]) -> int:
    """Return 0 when all was done, 1 when the process refused it or was not reached, 2 for wrong arguments."""
    arguments_parser = parser()
    given = arguments_parser.parse_args(arguments)
    if given.command in CHANGES and bool(given.id) == given.all:
        arguments_parser.error("either ids or --all must be given")
    if given.command == "breakers" and given.breaker and not given.mode:
        arguments_parser.error("mode must be open or automatic")
    try:
        found = [new_token(given.caller, given.scopes)] if given.command == "token" else ask(given)
    except grpc.RpcError as error:
        sys.stderr.write(f"{_refusal(error)}\n")
        return 1
    except (OSError, ValueError) as error:
        arguments_parser.error(str(error))
    lines = map(json.dumps, found) if given.json else table(found)
    sys.stdout.writelines(f"{line}\n" for line in lines)
    return 0


def _refusal(error: Any) -> str:
    refusal = from_rpc_error(error)
    return f"{error.code().name} {refusal.reason}: {refusal.message}"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

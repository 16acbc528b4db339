"""Run the sandbox: python -m sandbox"""

import asyncio
import json
import os
import signal
import socket
import sqlite3
import sys

import uvloop

from sandbox.app import listen, running
from sandbox.settings import Settings, from_environment
from sandbox.state import State


async def main(settings: Settings, listener: socket.socket, state: State) -> None:
    told_to_end = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, told_to_end.set)
    async with running(settings, listener, state) as url:
        sys.stdout.write(json.dumps({"event": "sandbox.listening", "url": url, "page": f"{url}/"}) + "\n")
        sys.stdout.flush()
        await told_to_end.wait()


if __name__ == "__main__":
    try:
        environment = from_environment(os.environ)
    except ValueError as problem:
        sys.stderr.write(f"{problem}\n")
        sys.exit(2)
    try:
        taken = listen(environment)
    except OSError as problem:
        sys.exit(f"cannot listen on {environment.listen}: {problem}")
    try:
        state = State(environment.database)
    except (OSError, sqlite3.Error) as problem:
        sys.exit(f"cannot open {environment.database}: {problem}")
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(main(environment, taken, state))

"""Run the sandbox: python -m sandbox"""

import asyncio
import json
import os
import signal
import socket
import sys

import uvloop

from sandbox.app import listen, running
from sandbox.settings import Settings, from_environment


async def main(settings: Settings, listener: socket.socket) -> None:
    told_to_end = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, told_to_end.set)
    async with running(settings, listener) as url:
        sys.stdout.write(json.dumps({"event": "sandbox.listening", "url": url, "page": f"{url}/"}) + "\n")
        sys.stdout.flush()
        await told_to_end.wait()


if __name__ == "__main__":
    try:
        environment = from_environment(os.environ)
    except (OSError, ValueError) as problem:
        sys.exit(f"sandbox: {problem}")
    try:
        taken = listen(environment)
    except (OSError, ValueError) as problem:
        sys.exit(f"sandbox: cannot listen on {environment.listen}: {problem}")
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(main(environment, taken))

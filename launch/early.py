"""Import this first: Ctrl-C ends the process quietly while it is still importing. `launch.__main__` takes over."""

import os
import signal


def leave(number: int, _frame: object) -> None:
    os._exit(128 + number)  # nothing has been started yet


for number in (signal.SIGINT, signal.SIGTERM):
    signal.signal(number, leave)

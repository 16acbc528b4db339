"""
Import this module first, so that SIGTERM ends a container's process while it still imports.

The kernel drops signals to PID 1 that have no handler, and the imports take most of a second. `lifecycle.run` replaces
the handler.
"""

import os
import signal


def _exit(_number: int, _frame: object) -> None:
    os._exit(0)  # nothing is open yet


if os.getpid() == 1:
    signal.signal(signal.SIGTERM, _exit)

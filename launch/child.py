"""
Run a module as the child of a process that may be killed: python -m launch.child services.sms

When the parent goes, however it goes, the child gets the SIGTERM that the parent can no longer send. It does not begin
where the file that LAUNCH_STOPPING names is there: the parent sent its SIGTERM before the child could take it.
"""

import os
import runpy
import signal
import sys
import threading
import time

#: Seconds between two looks at the parent.
LOOK = 0.5


def follow(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(LOOK)
    os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__" and not os.path.exists(os.environ.get("LAUNCH_STOPPING", "")):  # noqa: PTH110 - it is quick
    threading.Thread(target=follow, args=(os.getppid(),), daemon=True).start()
    module, sys.argv = sys.argv[1], sys.argv[1:]
    sys.path.insert(0, os.getcwd())  # noqa: PTH109 - as `python -m` does
    runpy.run_module(module, run_name="__main__", alter_sys=True)

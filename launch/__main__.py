"""Start the whole system and keep it up: python -m launch [folder] (`make run`)."""

import os
import signal
import sys
import threading
from pathlib import Path

from launch.settings import complete, merged, sandboxed
from launch.system import System

READY = """
  gateway   {gateway}            POST /v1/appointments/…/confirmation, POST /v1/payments, GET /v1/status
  gRPC      {payments} payments · {email} email · {sms} sms
  metrics   http://{operations}/metrics, and each service's own; logs in {folder}/log
  sandbox   {sandbox}/           {sandbox_note}

Three things to try:
  curl -s {gateway}/v1/status
  curl -s {gateway}/v1/payments -H 'Idempotency-Key: first' -H 'Content-Type: application/json' \\
       -d '{{"amount": {{"amount_minor": 15000, "currency": "BRL"}}, "appointment_id": "a1", "patient_id": "p1",
            "payer": {{"name": "Ana Souza", "email": "ana@example.com", "phone": "+5511912345678"}}}}'
  then pay it on the sandbox's page and watch the receipt and the text arrive there
"""


def main(folder: Path) -> int:
    system = System(complete(merged(os.environ, Path(".env")), folder.absolute()), folder)
    if taken := system.taken():
        sys.stderr.write(f"already in use: {', '.join(taken)}. Is the system running? Set …_LISTEN to move it.\n")
        return 1
    stopping = threading.Event()

    def drain(_number: int, _frame: object) -> None:
        stopping.set()
        threading.Thread(target=system.stop).start()  # a signal handler may not wait

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, drain)
    system.start()
    try:
        for name in system.waiting():
            print(f"  {name} is up", flush=True)
    except TimeoutError as late:
        if not stopping.is_set():
            sys.stderr.write(f"{late}; see {folder}/log\n")
        system.stop()
        return 1
    settings = system.settings
    print(
        READY.format(
            gateway=system.gateway,
            sandbox=system.sandbox,
            sandbox_note="everything sent, with buttons to pay"
            if sandboxed(settings)
            else "not for the real providers",
            payments=settings["PAYMENTS_LISTEN"],
            email=settings["EMAIL_LISTEN"],
            sms=settings["SMS_LISTEN"],
            operations=settings["GATEWAY_OPERATIONS_LISTEN"],
            folder=folder,
        )
    )
    print("ready", flush=True)
    code = system.wait()
    system.stop()
    return 0 if stopping.is_set() else code or 1


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path("var")))

"""Start the whole system and keep it up: python -m launch [folder] (`make run`)."""

import launch.early  # noqa: F401 - first: it handles Ctrl-C

# isort: split
import os
import signal
import sys
from pathlib import Path

from launch.settings import complete, merged, sandboxed
from launch.system import StartError, System

READY = """
  gateway   {gateway}            POST /v1/appointments/…/confirmation, POST /v1/payments, GET /v1/status
  gRPC      {payments} payments · {email} email · {sms} sms
  metrics   http://{operations}/metrics, and each service's own; logs in {folder}/log
  operate   python -m services.chassis.admin --target {admin} queues, and at each service's address
  sandbox   {sandbox}/           {sandbox_note}

Three things to try:
  curl -s {gateway}/v1/status
  curl -s {gateway}/v1/payments -H 'Idempotency-Key: first' -H 'Content-Type: application/json' \\
       -d '{{"amount": {{"amount_minor": 15000, "currency": "BRL"}}, "appointment_id": "a1", "patient_id": "p1",
            "payer": {{"name": "Ana Souza", "email": "ana@example.com", "phone": "+5511912345678"}}}}'
  then pay it on the sandbox's page and watch the receipt and the text arrive there
"""


class StopSignal:
    """The number of the signal that stopped this process; 0 before any."""

    number = 0

    def __call__(self, number: int, _frame: object) -> None:
        self.number = number


def main(folder: Path) -> int:
    """Return 0 after a signal to stop, 128 + signal if it came before all was ready, or the exit code of a process."""
    stop = StopSignal()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, stop)
    try:
        system = System(complete(merged(os.environ, Path(".env")), folder.absolute()), folder)
        if taken := system.taken():
            sys.stderr.write(f"already in use: {', '.join(taken)}. Is the system running? Set …_LISTEN to move it.\n")
            return 1
        system.start()
    except (StartError, OSError, ValueError) as problem:  # ValueError: .env is no text, or a setting holds a NUL
        sys.stderr.write(f"{problem}\n")
        return 1
    try:
        for name in system.waiting(stopped=lambda: stop.number != 0):
            print(f"  {name} is up", flush=True)
        if not stop.number:
            print_ready(system, folder)
            return system.wait(stopped=lambda: stop.number != 0)
        return 128 + stop.number
    except StartError as problem:
        sys.stderr.write(f"{problem}\n")
        return problem.code
    finally:
        system.stop()


def print_ready(system: System, folder: Path) -> None:
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
            admin=settings["GATEWAY_ADMIN_LISTEN"],
            folder=folder,
        )
    )
    print("ready", flush=True)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path("var")))

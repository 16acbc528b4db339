"""
Start the system in containers and play the demo against it: python -m launch.up [sqlite|postgres] (`make up`)

Secrets that `.env` lacks are made up and added to it, and certificates to `var/tls`; what is there already stays as it
is. COMPOSE says with what to start containers.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import secrets
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import aiohttp
import grpc
from cryptography import x509
from grpc_health.v1 import health_pb2, health_pb2_grpc

from launch.certificates import on_this_machine, write
from launch.demo import Demo, DemoError, perform
from launch.settings import PROCESSES, PROVIDERS, merged, new_secrets
from launch.system import ROOT, System

DOTENV = ROOT / ".env"
TLS = ROOT / "var" / "tls"
#: Seconds, once everything is built and started.
PATIENCE = 120.0

PORTS = {name.upper(): port for name, (_, port, _) in PROCESSES.items()}
REPLICAS = {"PAYMENTS_2": 50061, "EMAIL_2": 50062, "SMS_2": 50063, "GATEWAY_2": 8082}


def lacking(env: Mapping[str, str]) -> dict[str, str]:
    """Make up what docker-compose.yml asks for and `env` does not hold."""
    made = new_secrets()
    for process in ("POSTGRES", "PAYMENTS_DATABASE", "EMAIL_DATABASE", "SMS_DATABASE", "GATEWAY_DATABASE"):
        made[f"{process}_PASSWORD"] = secrets.token_hex(24)
    for caller in ("CLINIC", "OPERATOR"):
        made[f"{caller}_TOKEN"] = secrets.token_hex(32)
    token = {**made, **env}
    scopes = {"clinic": "read+send", "operator": "read+admin"}
    by_token = [f"{caller}:{those}:{digest(token[f'{caller.upper()}_TOKEN'])}" for caller, those in scopes.items()]
    scopes["gateway"] = "read+send+events+forward"
    by_certificate = [f"{caller}:{those}:san={caller}" for caller, those in scopes.items()]
    made["GATEWAY_CALLERS"] = ",".join(by_token)
    made["SERVICE_CALLERS"] = ",".join(by_token + by_certificate)
    return {name: value for name, value in made.items() if not env.get(name)}


def digest(token: str) -> str:
    return hashlib.sha256(token.encode()).hexdigest()


def write_secrets(dotenv: Path) -> list[str]:
    """Add to `dotenv` what it lacks; names what was added."""
    added = lacking(merged({}, dotenv))
    dotenv.touch(mode=0o600)
    dotenv.chmod(0o600)
    text = dotenv.read_text()
    lines = "".join(f"{name}={value}\n" for name, value in added.items())
    if lines:
        dotenv.write_text(text + ("\n" if text and not text.endswith("\n") else "") + lines)
    return list(added)


def write_certificates() -> None:
    """Make the services' certificates, and those of their callers."""
    servers = {name: on_this_machine(name) for name in ("payments", "email", "sms")}
    callers = {name: [x509.DNSName(name)] for name in ("gateway", "clinic", "operator")}
    write(TLS, {**servers, **callers})


def clinic() -> dict[str, str]:
    """Return where the clinic's certificate is."""
    return {f"CLINIC_{what.upper()}": f"{TLS}/clinic/{what}.pem" for what in ("ca", "cert", "key")}


def addresses(env: Mapping[str, str], profile: str) -> dict[str, str]:
    ports = {**PORTS, **(REPLICAS if profile == "postgres" else {})}
    return {f"{name}_LISTEN": f"127.0.0.1:{env.get(f'{name}_PORT') or port}" for name, port in ports.items()}


async def answering(system: System, name: str) -> bool:
    """Ask the published port itself: the operations listeners stay inside."""
    address = system.settings[f"{name}_LISTEN"]
    try:
        if name.startswith(("SANDBOX", "GATEWAY")):
            path = "/healthz" if name.startswith("SANDBOX") else "/v1/status"
            async with aiohttp.ClientSession() as http, http.get(f"http://{address}{path}") as answer:
                return answer.status < 500  # without a token the gateway answers 401
        async with system.channel(name) as channel:
            check = health_pb2_grpc.HealthStub(channel).Check
            health = await check(health_pb2.HealthCheckRequest(), timeout=2, wait_for_ready=True)
            return bool(health.status == health_pb2.HealthCheckResponse.SERVING)
    except (aiohttp.ClientError, OSError, grpc.aio.AioRpcError):
        return False


async def wait(system: System, demo: Demo) -> None:
    addresses = system.settings.items()
    left = {name.removesuffix("_LISTEN"): address for name, address in addresses if name.endswith("_LISTEN")}
    until = time.monotonic() + PATIENCE
    while left:
        for name, address in list(left.items()):
            if await answering(system, name):
                del left[name]
                demo.tell(f"{name.lower()} is up on {address}")
        if time.monotonic() > until:
            raise DemoError(f"not ready: {', '.join(sorted(left))}")
        await asyncio.sleep(0.2)


def stage(profile: str, compose: list[str]) -> Callable[[Demo], AbstractContextManager[System]]:
    @contextmanager
    def containers(demo: Demo) -> Iterator[System]:
        env = merged(os.environ, DOTENV)
        subprocess.run([*compose, "--profile", profile, "up", "-d", "--build"], cwd=ROOT, check=True)
        system = System({**addresses(env, profile), **clinic(), "CLINIC_TOKEN": env["CLINIC_TOKEN"]}, ROOT / "var")
        demo.tell("everything is built and started")
        asyncio.run(wait(system, demo))
        yield system

    return containers


def main(profile: str) -> int:
    if real := [base for _, base, _ in PROVIDERS.values() if merged(os.environ, DOTENV).get(base)]:
        sys.stderr.write(f"{', '.join(real)} set: the demo charges, mails and texts, which only the sandbox may take\n")
        return 1
    if added := write_secrets(DOTENV):
        print(f"made up and written to {DOTENV.name}: {', '.join(added)}")
    write_certificates()
    compose = shlex.split(os.environ.get("COMPOSE") or "docker compose")
    return perform(stage(profile, compose), shlex.join([*compose, "--profile", profile, "logs"]))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1] if len(sys.argv) > 1 else "sqlite"))

"""Each place that names a process, its port or its settings agrees with the one table: `PROCESSES` and `LISTENERS`."""

import re
from pathlib import Path

import pytest

from launch.settings import LISTENERS, PROCESSES
from launch.up import PORTS, REPLICAS
from services.chassis.settings import ProcessSettings
from tests.unit.test_environment_example import PROCESSES as SETTINGS

ROOT = Path(__file__).parent.parent.parent
COMPOSE = (ROOT / "docker-compose.yml").read_text()
DOCKERFILE = (ROOT / "Dockerfile").read_text()
#: A published port: the setting that may change it, its default, and the port inside the container.
PUBLISHED = re.compile(r"127\.0\.0\.1:\$\{([A-Z0-9_]+)_PORT:-([0-9]+)\}:([0-9]+)")
EXAMPLE = dict(
    re.findall(r"^# ([A-Z_]+_LISTEN)=127\.0\.0\.1:([0-9]+)$", (ROOT / ".env.example").read_text(), re.MULTILINE)
)


def test_environment_example_has_every_listener_and_its_port() -> None:
    assert {name: int(port) for name, port in EXAMPLE.items()} == LISTENERS


@pytest.mark.parametrize("settings", SETTINGS)
def test_default_listeners_of_a_process_are_the_table_s(settings: type[ProcessSettings]) -> None:
    own = {settings.variable(field): default for field, default in settings.defaults.items() if "listen" in field}
    own |= {
        settings.variable(name): field.default
        for name, field in settings.model_fields.items()
        if name.endswith("listen") and name not in settings.defaults
    }

    assert own
    assert {name: int(str(address).rpartition(":")[2]) for name, address in own.items()} == {
        name: port for name, port in LISTENERS.items() if name in own
    }


@pytest.mark.parametrize("name", PROCESSES)
def test_image_of_a_process_listens_on_its_ports_and_runs_its_module(name: str) -> None:
    module, port, operations = PROCESSES[name]
    target = re.search(rf"^FROM process AS {name}$(.*?)(?=^FROM|\Z)", DOCKERFILE, re.MULTILINE | re.DOTALL)

    assert target is not None
    assert f"{name.upper()}_LISTEN=0.0.0.0:{port}" in target[1]
    assert not operations or f"{name.upper()}_OPERATIONS_LISTEN=0.0.0.0:{operations}" in target[1]
    assert f'CMD ["python", "-m", "{module}"]' in target[1]
    assert re.search(rf"HEALTHCHECK .* {name.upper()} {operations or port}/", target[1])


@pytest.mark.parametrize("name", PROCESSES)
def test_compose_builds_and_publishes_each_process(name: str) -> None:
    inside = {int(port) for listener, _, port in PUBLISHED.findall(COMPOSE) if listener.startswith(name.upper())}

    assert f"target: {name}}}" in COMPOSE
    assert inside == {PROCESSES[name][1]}


def test_compose_publishes_the_ports_that_make_up_waits_for() -> None:
    published = {listener: int(port) for listener, port, _ in PUBLISHED.findall(COMPOSE)}

    assert published == {**PORTS, **REPLICAS}


@pytest.mark.parametrize("name", [name for name in PROCESSES if name not in {"sandbox", "gateway"}])
def test_compose_gives_the_gateway_each_service_s_addresses(name: str) -> None:
    _, port, operations = PROCESSES[name]

    assert f"{name.upper()}_TARGET: dns:///{name}:{port}" in COMPOSE
    assert f"{name.upper()}_OPERATIONS: https://{name}:{operations}" in COMPOSE

"""The services of docker-compose.yml: what they may do, what they wait for, and that what they run is there."""

from __future__ import annotations

import importlib.util
import re
from typing import Any

import pytest

from tests.compose import list_variables, read_services
from tests.stack import ROOT
from worker.secrets import main

VARIABLES = {"ARCHIVE": "/data/archive"}
FILE = read_services(VARIABLES)
SERVICES: dict[str, dict[str, Any]] = FILE["services"]
OURS = {name: one for name, one in SERVICES.items() if one["image"].startswith("lesion-screen:")}
#: They end when they are done.
ONE_SHOT = {"migrate", "producer"}


def test_the_parts_of_the_system_are_there() -> None:
    assert set(SERVICES) == {
        *("redis", "postgres", "migrate", "feeder", "beat", "flower", "producer"),
        *("worker", "worker-cpu", "worker-training", "worker-training-cpu"),
    }
    profiles = {name: one.get("profiles") for name, one in SERVICES.items() if "profiles" in one}
    assert profiles == {
        "worker": ["gpu"],
        "worker-training": ["gpu"],
        "worker-cpu": ["cpu"],
        "worker-training-cpu": ["cpu"],
        "producer": ["tools"],
    }


@pytest.mark.parametrize("name", sorted(SERVICES))
def test_no_service_may_do_more_than_it_must(name: str) -> None:
    service = SERVICES[name]
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert int(service["user"].partition(":")[0]) > 0
    assert service["pids_limit"] <= 512
    assert service["mem_limit"]
    assert service["restart"] == {"migrate": "on-failure", "producer": "no"}.get(name, "unless-stopped")
    # Nothing but Flower is reached from outside, and that from the machine itself alone
    assert service.get("ports", []) == (["127.0.0.1:5555:5555"] if name == "flower" else [])
    assert "inside" in service["networks"]
    assert ("outside" in service["networks"]) == (name == "flower")
    # No secret stands in an environment, and an archive is only read
    assert not [key for key in service.get("environment", {}) if re.search("PASSWORD$|_URL|AUTH", key)]
    assert all(mount.endswith(":ro") for mount in service.get("volumes", []) if mount.startswith(("/", ".")))
    assert "privileged" not in service


@pytest.mark.parametrize("name", sorted(set(SERVICES) - ONE_SHOT))
def test_a_service_that_stays_is_checked(name: str) -> None:
    check = SERVICES[name]["healthcheck"]
    assert check["retries"] >= 3
    part = {"worker-cpu": "worker", "worker-training": "training", "worker-training-cpu": "training"}.get(name, name)
    if name in OURS:
        assert check["test"] == ["CMD", "python", "-m", "worker.health", part]


def test_services_wait_for_what_they_need_to_be_well() -> None:
    for name, service in OURS.items():
        awaited = {one: how["condition"] for one, how in service["depends_on"].items()}
        if name == "migrate":
            assert awaited == {"postgres": "service_healthy"}
        else:
            assert awaited == {"migrate": "service_completed_successfully", "redis": "service_healthy"}
        for one in awaited:
            assert "healthcheck" in SERVICES[one] or one in ONE_SHOT


def test_gpu_workers_reserve_a_device_and_run_the_image_with_its_libraries() -> None:
    targets = set(re.findall(r"^FROM \S+ AS (\S+)$", (ROOT / "Dockerfile").read_text(encoding="utf-8"), re.MULTILINE))
    for name, service in OURS.items():
        target = service["build"]["target"]
        assert service["image"] == f"lesion-screen:{target}"
        assert target in targets
        assert (target == "gpu") == ("deploy" in service) == (service.get("profiles") == ["gpu"]), name
    (device,) = SERVICES["worker"]["deploy"]["resources"]["reservations"]["devices"]
    assert device == {"driver": "nvidia", "device_ids": ["0"], "capabilities": ["gpu"]}


def test_every_command_is_there() -> None:
    for service in OURS.values():
        words = [*service.get("entrypoint", []), *service["command"]]
        if words[:2] == ["python", "-m"]:
            assert importlib.util.find_spec(words[2]) is not None
        else:
            assert words[0] in {"celery", "lesion-screen"}


def test_every_variable_is_in_the_readme_and_one_alone_must_be_set() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert [name for name in list_variables() if f"`{name}`" not in readme] == []
    with pytest.raises(KeyError, match="ARCHIVE"):
        read_services({})


def test_secrets_are_drawn_once_and_are_those_that_services_mount(tmp_path: Any, capsys: Any) -> None:
    # If they are made, twice
    folder = tmp_path / "secrets"
    assert main([str(folder)]) == 0
    before = {path.name: path.read_text(encoding="utf-8") for path in folder.iterdir()}
    assert main([str(folder)]) == 2
    assert "keeps its passwords" in capsys.readouterr().err

    # Then they are what the file mounts, and are the same in both places
    assert {name: f"./secrets/{name}" for name in before} == {
        name: one["file"] for name, one in FILE["secrets"].items()
    }
    assert {path.name: path.read_text(encoding="utf-8") for path in folder.iterdir()} == before
    used = {secret for service in SERVICES.values() for secret in service.get("secrets", [])}
    assert used == set(before)
    assert f":{before['postgres_password']}@postgres:5432/screen" in before["db_url"]
    assert f":{before['redis_password']}@redis:6379/0" in before["worker_broker_url"]
    assert folder.stat().st_mode & 0o777 == 0o700
    # And neither git nor an image ever takes them
    assert "/secrets/" in (ROOT / ".gitignore").read_text(encoding="utf-8").splitlines()
    assert (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()[1] == "*"
    assert main([]) == 2

"""The examples for balancers, Compose, keepalived and Ansible: the real programs accept them, and they fit one another."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from lbplugins.nginx.layout import scan
from lbplugins.nginx.traffic import LOG_FORMAT
from sidecar.cli import build_parser
from sidecar.config.load import load
from sidecar.config.models import Config
from sidecar.demo import stage
from tests.deploy.pages import ROOT
from tests.system.lab import free_ports

DEPLOY = ROOT / "deploy"
HAPROXY_FILES = [DEPLOY / "haproxy" / "haproxy.cfg", DEPLOY / "compose" / "haproxy.cfg"]
HAPROXIES, NGINXES = list(stage.haproxy_binaries()), list(stage.nginx_binaries())


def yaml(path: Path) -> Any:
    return YAML(typ="safe", pure=True).load(path.read_text())


def config_of(folder: str) -> Config:
    return load(DEPLOY / folder / "lb-sidecar.yaml").require()


@pytest.mark.parametrize("path", sorted(DEPLOY.rglob("*.yaml")), ids=lambda p: str(p.relative_to(DEPLOY)))
def test_every_yaml_file_is_yaml(path: Path) -> None:
    assert yaml(path)


@pytest.mark.parametrize("path", sorted(DEPLOY.rglob("lb-sidecar.yaml")), ids=lambda p: p.parent.name)
def test_every_configuration_loads_without_a_problem_and_observes_first(path: Path) -> None:
    loaded = load(path)

    assert loaded.problems == ()
    assert loaded.require().mode.value == "observe"


# ---- HAProxy ----


@pytest.mark.parametrize("binary", HAPROXIES, ids=lambda b: b.version)
@pytest.mark.parametrize("path", HAPROXY_FILES, ids=lambda p: p.parent.name)
def test_haproxy_accepts_its_example(path: Path, binary: stage.Binary) -> None:
    found = subprocess.run([binary.path, "-c", "-f", path], capture_output=True, text=True, check=False, timeout=60)

    assert found.returncode == 0, found.stdout + found.stderr


def test_there_are_two_haproxies_and_two_nginxes_to_ask() -> None:
    assert len(HAPROXIES) >= 2
    assert len(NGINXES) >= 2


@pytest.mark.parametrize("path", HAPROXY_FILES, ids=lambda p: p.parent.name)
def test_haproxy_and_the_sidecar_mean_the_same_addresses(path: Path) -> None:
    text, config = path.read_text(), config_of(path.parent.name)
    options = config.balancers["edge"].options.model_dump()

    assert f"stats socket {options['socket'][0]} " in text
    assert f"log {options['traffic']['syslog']} " in text
    host, port = options["agent"]
    assert f"agent-addr {host} agent-port {port}" in text
    assert set(config.services) == set(re.findall(r"^backend (\S+)", text, re.MULTILINE))
    servers = re.findall(r"^    server (\S+) \S+ agent-send \"(\S+)\\n\"", text, re.MULTILINE)
    assert len(servers) == 3
    assert all(said == f"shop/{name}" for name, said in servers)


# ---- Nginx ----


def nginx_here(folder: Path) -> Path:
    """The example, moved into this folder: where its files are and where it listens is all that changes."""
    text = (DEPLOY / "nginx" / "nginx.conf").read_text()
    (port,) = free_ports(1)
    moves = {
        "/etc/nginx/sidecar.d": f"{folder}/sidecar.d",
        "/run/nginx.pid": f"{folder}/nginx.pid",
        "/var/log/nginx": str(folder),
        "listen 8080": f"listen 127.0.0.1:{port}",
    }
    for old, new in moves.items():
        assert old in text
        text = text.replace(old, new)
    (folder / "sidecar.d").mkdir(mode=0o755)
    (folder / "sidecar.d" / "shop.conf").write_text((DEPLOY / "nginx" / "sidecar.d" / "shop.conf").read_text())
    (folder / "nginx.conf").write_text(text)
    return folder / "nginx.conf"


@pytest.mark.parametrize("binary", NGINXES, ids=lambda b: b.version)
def test_nginx_accepts_its_example(binary: stage.Binary, tmp_path: Path) -> None:
    config = nginx_here(tmp_path)

    argv = [binary.path, "-t", "-p", f"{tmp_path}/", "-c", str(config), "-e", "stderr"]
    found = subprocess.run(argv, capture_output=True, text=True, check=False, timeout=60)

    assert found.returncode == 0, found.stderr


def test_the_plugin_finds_the_upstream_of_the_example(tmp_path: Path) -> None:
    config = nginx_here(tmp_path)

    found = scan(config, tmp_path / "sidecar.d")

    assert set(found.upstreams) == set(config_of("nginx").services)


def test_nginx_and_the_sidecar_mean_the_same_log_feed_in_the_same_format() -> None:
    text = (DEPLOY / "nginx" / "nginx.conf").read_text()
    options = config_of("nginx").balancers["web"].options.model_dump()

    assert LOG_FORMAT in text
    assert f"syslog:server={options['traffic']['syslog']}," in text


# ---- Compose ----


def test_the_companion_sees_all_that_the_sidecar_writes_and_runs_as_confined() -> None:
    services = yaml(DEPLOY / "compose" / "docker-compose.yaml")["services"]
    sidecar, release = services["sidecar"], services["release"]
    shared = ("image", "network_mode", "read_only", "cap_drop", "security_opt", "volumes", "tmpfs")

    assert {key: sidecar[key] for key in shared} == {key: release[key] for key in shared}
    assert sidecar["read_only"] is True
    assert sidecar["cap_drop"] == ["ALL"]
    assert "state:/var/lib/lb-sidecar" in sidecar["volumes"]


def test_every_file_and_volume_that_compose_mounts_is_there() -> None:
    compose = yaml(DEPLOY / "compose" / "docker-compose.yaml")
    mounted = [volume.partition(":")[0] for service in compose["services"].values() for volume in service["volumes"]]

    assert mounted
    for source in mounted:
        assert (DEPLOY / "compose" / source).is_file() if source.startswith("./") else source in compose["volumes"], source


def test_the_commands_of_compose_exist() -> None:
    services = yaml(DEPLOY / "compose" / "docker-compose.yaml")["services"]
    (script,) = services["release"]["command"]
    (release,) = re.findall(r"lb-sidecar (release [^|]+)\|", script)

    build_parser().parse_args(services["sidecar"]["command"])
    build_parser().parse_args(release.split())
    assert subprocess.run(["sh", "-n", "-c", script.replace("$$", "$")], check=False).returncode == 0


# ---- keepalived and Ansible ----


def test_keepalived_asks_for_the_sidecars_own_life_never_for_the_services() -> None:
    text = (DEPLOY / "keepalived" / "keepalived.conf").read_text()

    assert text.count("{") == text.count("}")
    defined, tracked = set(re.findall(r"^vrrp_script (\w+)", text, re.MULTILINE)), re.search(r"track_script \{([^}]*)\}", text)
    assert tracked is not None
    assert set(tracked[1].split()) == defined
    script = (DEPLOY / "keepalived" / "sidecar-lives").read_text()
    assert '"/livez"' in script
    assert "/health" not in script


def play() -> list[dict[str, Any]]:
    (found,) = yaml(DEPLOY / "ansible" / "rolling.yaml")
    (whole,) = found["tasks"]
    steps: list[dict[str, Any]] = whole["block"]
    return steps


def test_the_rolling_update_drains_waits_replaces_and_makes_ready() -> None:
    steps = play()
    argvs = [[str(word) for word in step["ansible.builtin.command"]["argv"]] for step in steps if "ansible.builtin.command" in step]
    words = [[re.sub(r"\{\{ instance \}\}", "shop/s1", w).replace("{{ owner }}", "rolling") for w in argv] for argv in argvs]

    assert [argv[:2] for argv in words] == [["lb-sidecar", "drain"], ["lb-sidecar", "ready"]]
    drain, ready = (build_parser().parse_args(argv[1:]) for argv in words)
    assert drain.owner == ready.owner, "one owner, or the ready would not end the drain"
    assert drain.wait == "60s"
    assert drain.ttl, "what a broken playbook leaves behind must end by itself"
    assert "ansible.builtin.command" in steps[0]
    assert "ansible.builtin.command" in steps[-1]
    asked = next(step for step in steps if "ansible.builtin.uri" in step)
    assert asked["until"], "it gets traffic only when it answers"

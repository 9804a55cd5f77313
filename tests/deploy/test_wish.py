"""The sidecar without root beside Nginx: it wishes for a reload, somebody with the right tests and reloads, and only the effect counts."""

from __future__ import annotations

import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from bench.daemon import until
from sidecar.config.load import load
from tests.deploy.pages import ROOT
from tests.deploy.test_units import SYSTEMD, parsed
from tests.system.lab import Lab

pytestmark = pytest.mark.real
OUT = 2


@pytest.fixture(params=["nginx-1.22", "nginx-1.31"])
def lab(request: pytest.FixtureRequest) -> Iterator[Lab]:
    lab = Lab(request.param, 4)
    try:
        lab.start()
        yield lab
    finally:
        lab.close()


def wishing(lab: Lab) -> str:
    """The lab's configuration with `test` and `reload` as the example for systemd has them."""
    example = load(ROOT / "deploy/nginx/lb-sidecar.yaml").require().balancers["web"].options.model_dump()
    touch, wish = example["reload"]
    assert wish == "/run/lb-sidecar/nginx-reload"
    config = lab.config()
    assert "reload: signal" in config
    return config.replace("reload: signal", f"test: [{', '.join(example['test'])}], reload: [{touch}, {lab.folder}/wish]")


@contextmanager
def root_unit(lab: Lab) -> Iterator[list[int]]:
    """What lb-sidecar-nginx-reload.path and .service do, with this lab's paths. Gives the exit codes of the tests so far."""
    _, test, reload = parsed(SYSTEMD / "lb-sidecar-nginx-reload.service")["Service"]["ExecStart"]
    here = ["-p", f"{lab.folder}/", "-c", f"{lab.folder}/nginx.conf", "-e", f"{lab.folder}/error.log"]
    commands = [[lab.binary.path, *command.split()[1:], *here] for command in (test, reload)]
    wish, stop, codes = lab.folder / "wish", threading.Event(), list[int]()

    def serve() -> None:
        while not stop.wait(0.02):
            if wish.exists():
                wish.unlink()
                codes.append(subprocess.run(commands[0], stderr=subprocess.DEVNULL, check=False).returncode)
                if codes[-1] == 0:
                    subprocess.run(commands[1], stderr=subprocess.DEVNULL, check=False)

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield codes
    finally:
        stop.set()
        thread.join()


def managed(lab: Lab) -> str:
    return (lab.folder / "sidecar.d" / "shop.conf").read_text()


def test_a_wish_takes_an_instance_out_and_brings_it_back(lab: Lab) -> None:
    daemon = lab.sidecar(wishing(lab))
    with root_unit(lab) as codes:
        daemon.start()
        daemon.wait_healthy(lab.ports)

        lab.instances.kill(OUT)
        until(lambda: daemon.instances()[lab.ports[OUT]]["serving"] == "none", daemon.log_text)
        assert "# lb-sidecar ejected" in managed(lab)
        lab.instances.start(OUT)

        until(lambda: daemon.instances()[lab.ports[OUT]]["serving"] == "full", daemon.log_text)
        until(lambda: "# lb-sidecar ejected" not in managed(lab), lambda: managed(lab))
        assert codes
        assert set(codes) == {0}
        daemon.end()


def test_a_configuration_that_somebody_broke_is_not_loaded_and_the_file_goes_back(lab: Lab) -> None:
    daemon = lab.sidecar(wishing(lab))
    with root_unit(lab) as codes:
        daemon.start()
        daemon.wait_healthy(lab.ports)
        before = managed(lab)
        config = lab.folder / "nginx.conf"
        config.write_text(config.read_text().replace("http {", "http {\n    nobody_knows_this on;", 1))

        lab.instances.kill(OUT)
        daemon.wait_event("ejected")

        until(lambda: any(codes), "the unit's test failed")
        until(lambda: managed(lab) == before, lambda: f"{managed(lab)}\n{daemon.log_text()}")
        until(lambda: "no new worker" in str(daemon.ask("/api/v1/decisions?limit=100")[1]) + daemon.log_text(), daemon.log_text)
        daemon.end()

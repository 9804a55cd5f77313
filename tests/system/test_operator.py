"""What an operator has said to the balancer survives our taking out and bringing back."""

from __future__ import annotations

import os
import signal

import pytest

from bench.daemon import until
from tests.system.lab import HAPROXY, lab

pytestmark = pytest.mark.real

MAINT, DRAIN = 1, 8


@pytest.mark.parametrize("shape", HAPROXY)
def test_his_weight_drain_and_maintenance_survive_our_ejection_and_return(shape: str) -> None:
    with lab(shape, 5) as box:
        box.haproxy("set server shop/s1 weight 37")
        box.haproxy("set server shop/s2 state drain")
        sidecar = box.sidecar()
        sidecar.start()
        sidecar.wait_healthy([box.ports[0], *box.ports[2:]])

        box.kill(1)
        box.out_and_back(0)
        box.instances.start(1)
        until(lambda: sidecar.judgements()[box.ports[1]] == "healthy", "the drained one answers well again")
        assert box.rows()[0].weight == 37
        assert box.rows()[1].admin & DRAIN and not box.rows()[1].admin & MAINT

        box.kill(2)
        box.wait_out(2)
        box.haproxy("set server shop/s3 state maint")
        box.instances.start(2)
        until(lambda: sidecar.judgements()[box.ports[2]] in ("healthy", "probation"), "it answers well, in his maintenance")
        assert box.rows()[2].admin & MAINT and 2 not in box.in_rotation()

        box.haproxy("set server shop/s3 state ready")
        box.wait_in(2)
        until(lambda: box.rows()[2].check == box.rows()[3].check, "its own check is as its peers' again")


def test_a_down_that_he_wrote_into_nginx_file_is_his() -> None:
    with lab("nginx-1.22") as box:
        assert box.balancer is not None
        his = box.include.read_text().replace(f"{box.ports[3]} max_fails=0;", f"{box.ports[3]} weight=3 max_fails=0 down;")
        box.include.write_text(his)
        os.kill(box.balancer.process.pid, signal.SIGHUP)
        sidecar = box.sidecar()
        sidecar.start()
        sidecar.wait_healthy(box.ports[:3])

        box.kill(0)
        box.wait_out(0)
        assert f"server 127.0.0.1:{box.ports[3]} weight=3 max_fails=0 down;\n" in box.include.read_text()
        box.instances.start(0)
        box.wait_in(0)

        until(lambda: box.include.read_text() == his, "the file is his again, to the byte")
        assert sidecar.instances()[box.ports[3]]["operator"] == "maintenance"


def test_his_ready_against_our_ejection_means_hands_off() -> None:
    with lab("haproxy-2.8-none") as box:
        sidecar = box.running()
        box.kill(0)
        box.wait_out(0)
        until(lambda: sidecar.instances()[box.ports[0]]["ejection"], "the ejection is known")

        box.haproxy("set server shop/s1 health up")

        sidecar.wait_event("operator", "hands off")
        assert 0 in box.in_rotation()


def test_observe_mode_writes_nothing_and_says_what_it_would_do() -> None:
    with lab("haproxy-2.8-check") as box:
        sidecar = box.running(box.config("mode: observe\n"))

        box.kill(0)

        event = sidecar.wait_event("ejected")
        assert event["enforced"] is False
        # HAProxy's own check finds out as well, and nobody has switched that check off
        until(lambda: 0 not in box.in_rotation(), "down by its own check")
        assert {row.check for row in box.rows().values()} <= {6, 7} and {row.admin for row in box.rows().values()} == {0}


def test_observe_mode_leaves_nginx_file_alone() -> None:
    with lab("nginx-1.31") as box:
        before = box.include.read_bytes()
        sidecar = box.running(box.config("mode: observe\n"))

        box.kill(0)

        assert sidecar.wait_event("ejected")["enforced"] is False
        box.instances.start(0)
        sidecar.wait_event("returned")
        assert box.include.read_bytes() == before

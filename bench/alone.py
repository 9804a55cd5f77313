"""What balancers do by themselves, without the sidecar: the peers that `bench.removal` compares with."""

from __future__ import annotations

import re
import subprocess
from dataclasses import dataclass, replace

from sidecar.demo import stage


@dataclass(frozen=True, slots=True)
class Alone:
    """One way of a balancer's own. `server`: options of each server line; `backend`: a line beside them.

    `tells` False = its own state never says who is out; only its requests do. `health`: HAProxy's count of a server that is
    fully trusted, `fall + rise - 1`.
    """

    name: str
    server: str
    backend: str = ""
    tells: bool = True
    health: int | None = None


DEFAULT = "alone"
"""The name of each balancer's own default, which ratios refer to."""
WAYS: dict[str, tuple[Alone, ...]] = {
    "haproxy": (
        Alone(DEFAULT, "check inter 2s fall 3 rise 2", health=4),
        Alone("alone-tuned", "check inter 200ms fastinter 50ms fall 2 rise 2", "timeout check 100ms", health=3),
    ),
    "nginx": (Alone(DEFAULT, "max_fails=1 fail_timeout=10s", tells=False),),
}
_HAPROXY_SERVER = re.compile(r"^( +server \S+ \S+ weight 100)$", re.MULTILINE)
_HAPROXY_CHECK = re.compile(r"^( +option httpchk .*)$", re.MULTILINE)
_NGINX_SERVER = re.compile(r"^(server \S+) max_fails=0;$", re.MULTILINE)


def haproxy_config(text: str, way: Alone) -> str:
    """The demo's configuration with these options on every server line; ValueError when it has no plain ones."""
    text, servers = _HAPROXY_SERVER.subn(rf"\1 {way.server}", text)
    text, checks = _HAPROXY_CHECK.subn(rf"\1\n    {way.backend}" if way.backend else r"\1", text)
    if not servers or checks != 1:
        raise ValueError(
            f"{servers} server lines without options and {checks} lines `option httpchk`: the demo's configuration has changed"
        )
    return text


def nginx_servers(text: str, way: Alone) -> str:
    """The demo's server lines with these options; ValueError when one of them is not as expected."""
    found, servers = _NGINX_SERVER.subn(rf"\1 {way.server};", text)
    if servers != len(text.splitlines()):
        raise ValueError(f"{servers} of {len(text.splitlines())} lines are `server ADDRESS max_fails=0;`: the demo's file has changed")
    return found


def restart(balancer: stage.Balancer, kind: str, way: Alone) -> stage.Balancer:
    """The same balancer started anew with its own ways. The given one has ended, whatever happens."""
    balancer.stop()
    file = balancer.folder / ("haproxy.cfg" if kind == "haproxy" else "sidecar.d/shop.conf")
    change = haproxy_config if kind == "haproxy" else nginx_servers
    file.write_text(change(file.read_text(), way))
    with (balancer.folder / f"{kind}.err").open("ab") as errors:
        process = subprocess.Popen(balancer.process.args, stdout=subprocess.DEVNULL, stderr=errors)
    fresh = replace(balancer, process=process)
    try:
        stage.wait_for(balancer.port, f"{kind} {way.name}")
    except stage.StageError:
        fresh.stop()
        raise
    return fresh

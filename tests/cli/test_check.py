"""`lb-sidecar check` as people run it: as root and as nobody, on real balancers, with and without what it needs."""

from __future__ import annotations

import contextlib
import io
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from bench.daemon import Daemon, until
from lbplugins.values import Address, Ref
from sidecar.cli import main
from sidecar.cli.survey import HAPROXY, HAPROXY_LEVERS
from sidecar.core.model import Learned, Target
from sidecar.store import learned
from tests.cli.desk import free_port
from tests.plugins.haproxy.lab import VERSIONS, Box, Tap
from tests.plugins.nginx.lab import BINARIES, NginxLab
from tests.plugins.stranger import NOBODY, needs_root
from tests.system.lab import lab

MEMORY = "  edge: {plugin: memory, pools: {shop: {a: '127.0.0.1:81', b: '127.0.0.1:82', c: '127.0.0.1:83'}}}\n"
SHOP = "services:\n  shop: {balancer: edge, probe: {http: /health}}\n"


@dataclass(frozen=True)
class Ran:
    code: int
    out: str
    err: str

    @property
    def data(self) -> Any:
        return json.loads(self.out)


def ran(*words: str) -> Ran:
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main(["check", *words])
    return Ran(code, out.getvalue(), err.getvalue())


# Once as root, for all that must be imported: the interpreter itself may lie where nobody may look.
_AS_NOBODY = """
import contextlib, encodings.ascii, encodings.idna, io, os, sys
from sidecar.cli import main
with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
    main(["check", *sys.argv[1:]])
os.setgroups([])
os.setgid(65534)
os.setuid(65534)
os.environ.pop("XDG_STATE_HOME", None)
sys.exit(main(["check", *sys.argv[1:]]))
"""


def ran_by_nobody(*words: str) -> Ran:
    """The same command in a process that has become `nobody`, without any group."""
    done = subprocess.run([sys.executable, "-c", _AS_NOBODY, *words], capture_output=True, text=True, timeout=110)
    assert "Traceback" not in done.stderr + done.stdout, done.stderr + done.stdout
    return Ran(done.returncode, done.stdout, done.stderr)


@pytest.fixture
def home() -> Iterator[Path]:
    """A folder of root's that others may enter, with one of nobody's own in it: `theirs`."""
    folder = Path(tempfile.mkdtemp(prefix="lbc"))
    folder.chmod(0o755)
    theirs = folder / "theirs"
    theirs.mkdir(mode=0o750)
    if os.geteuid() == 0:
        os.chown(theirs, NOBODY, NOBODY)
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


def written(home: Path, balancers: str = MEMORY, services: str = SHOP, *, more: str = "", state: str = "state", api: str = "") -> str:
    path = home / "lb-sidecar.yaml"
    socket_path = home / state / "api.sock" if state == "theirs" else home / "api.sock"
    api = api or f"{{listen: '127.0.0.1:{free_port()}', socket: {socket_path}}}"
    path.write_text(f"{more}api: {api}\nstate: {{dir: {home / state}}}\nbalancers:\n{balancers}{services}")
    path.chmod(0o644)
    return str(path)


def tree(folder: Path) -> list[str]:
    return sorted(str(path) for path in folder.rglob("*"))


# ---- the file alone ----


def test_a_sound_configuration_is_fine_and_nothing_is_made(home: Path) -> None:
    path = written(home)
    before = tree(home)

    shown = ran(path)

    assert shown.code == 0, shown.out
    assert "no problem in it" in shown.out and shown.out.rstrip().endswith("fine")
    assert "edge (memory, act): reachable" in shown.out
    assert [line.split()[1] for line in shown.out.splitlines() if "127.0.0.1:8" in line] == ["shop/a", "shop/b", "shop/c"]
    assert f"state folder {home}/state, is made at the first start" in shown.out
    assert "3 of 3 are not known yet" in shown.out
    assert "1: 0 (0), 2: 1 (0), 3: 1 (1), 4: 2 (1)" in shown.out and "20: 10 (6)" in shown.out
    assert "\x1b" not in shown.out
    assert tree(home) == before


def test_all_problems_stand_there_at_once_with_their_places_and_the_exit_is_2(home: Path) -> None:
    path = written(home, services="services:\n  shop: {balancer: edg, prob: {http: /health}}\n  web: {balancer: edge, runbook: x}\n")

    shown = ran(path)

    lines = [line for line in shown.out.splitlines() if line.startswith(f"  {path}:")]
    assert shown.code == 2
    assert len(lines) == 3
    assert all(": error: services." in line for line in lines)
    assert any("did you mean 'edge'?" in line for line in lines) and any("did you mean 'probe'?" in line for line in lines)
    assert "3 errors" in shown.out and "not a configuration" in shown.out


def test_a_contradiction_is_1_and_advice_is_0(home: Path) -> None:
    contradictory = "services:\n  shop: {balancer: edge, probe: {http: /health, interval: 1s, timeout: 5s}}\n"
    advised = "services:\n  shop: {balancer: edge}\n"

    bad, good = ran(written(home, services=contradictory)), ran(written(home, services=advised))

    assert bad.code == 1 and "contradiction: services.shop.probe.timeout" in bad.out and "1 thing to mend" in bad.out
    assert good.code == 0 and "1 piece of advice" in good.out


def test_no_file_at_all_says_how_to_get_one(home: Path) -> None:
    shown = ran(str(home / "none.yaml"))

    assert shown.code == 2 and "none.yaml" in shown.out


def test_effective_and_schema_ask_nobody(home: Path) -> None:
    path = written(home, "  edge: {plugin: haproxy, socket: /nowhere.sock}\n")

    effective, schema = ran("--effective", path), ran("--schema", path)

    assert effective.code == 0 and f"{path}:6" in effective.out and "# default" in effective.out
    assert schema.code == 0 and json.loads(schema.out)["properties"]["services"]
    assert ran("--effective", written(home, services="services: {shop: {balanc: edge}}\n")).code == 2


def test_offline_leaves_the_machine_alone_and_still_calculates(home: Path) -> None:
    path = written(
        home,
        "  edge: {plugin: haproxy, socket: /nowhere.sock}\n",
        "services:\n  shop: {balancer: edge, instances: ['10.0.0.1:80', '10.0.0.2:80', '10.0.0.3:80'], probe: {http: /}}\n"
        "  web: {balancer: edge, probe: {http: /}}\n",
    )

    shown, data = ran("--offline", path), ran("--offline", "--json", path).data

    assert shown.code == 0, shown.out
    assert "reachable" not in shown.out and "as far as the file goes" in shown.out
    assert "web: none of its instances is to be seen from here, so none is known (30 good probes by default)" in shown.out
    assert data["own"] is None and data["balancers"] == {}
    assert data["services"]["shop"]["instances"] == 3
    assert data["services"]["shop"]["most_out"][2] == {"n": 3, "hard": 1, "soft": 1}
    assert data["services"]["shop"]["detect_once_known"]["refused"]["most"] < 0.5 < data["services"]["shop"]["detect"]["refused"]["most"]


def test_json_says_the_same_as_the_table(home: Path) -> None:
    found = ran("--json", written(home))

    assert found.code == 0 and found.out.count("\n") == 1
    data = found.data
    assert (data["exit_code"], data["problems"], data["own"]["lacking"]) == (0, [], [])
    edge, shop = data["balancers"]["edge"], data["services"]["shop"]
    assert edge["reachable"] and edge["ready"]
    assert [(s["service"], s["pool"], s["server"], s["writable"]) for s in edge["servers"]] == [("shop", "shop", c, True) for c in "abc"]
    assert "release --expired" in edge["servers"][0]["returned_if_we_die_by"]
    assert (shop["instances"], shop["known"]) == (3, 0)
    assert [row["n"] for row in shop["most_out"]] == list(range(1, 21))


def test_what_was_learned_makes_the_bounds_those_of_today(home: Path) -> None:
    path = written(home)
    state = home / "state"
    state.mkdir(mode=0o750)
    learned.save(state, {Target(Address("127.0.0.1", port), "http:/health"): Learned(100, 0.0005, 0.001) for port in (81, 82, 83)})

    shop = ran("--json", path).data["services"]["shop"]

    assert shop["known"] == 3
    assert shop["detect"]["refused"]["most"] < 0.35
    assert shop["detect"] == shop["detect_once_known"]
    assert "not known yet" not in ran(path).out


def test_the_star_stands_for_every_pool_that_nobody_names(home: Path) -> None:
    pools = "  edge: {plugin: memory, pools: {shop: {a: '127.0.0.1:81'}, web: {b: '127.0.0.1:82'}, db: {c: '127.0.0.1:83'}}}\n"
    path = written(home, pools, SHOP + "  '*': {balancer: edge, mode: observe, probe: {tcp: true}}\n")

    data = ran("--json", path).data

    assert sorted(data["services"]) == ["db", "shop", "web"]
    assert {s["server"]: s["service"] for s in data["balancers"]["edge"]["servers"]} == {"a": "shop", "b": "web", "c": "db"}
    assert "observe" in data["services"]["web"]["never"] and "one instance" in data["services"]["shop"]["never"]


def test_a_pool_that_is_not_there_is_told_with_those_that_are(home: Path) -> None:
    shown = ran(written(home, services="services:\n  cart: {balancer: edge, probe: {http: /}}\n"))

    assert shown.code == 1
    assert "edge has no pool 'cart' with servers; it has: shop" in shown.out


def test_a_mistyped_pool_is_told_which_was_meant(home: Path) -> None:
    shown = ran(written(home, services="services:\n  web: {balancer: edge, pool: shpo, probe: {http: /}}\n"))

    assert shown.code == 1
    assert "edge has no pool 'shpo' with servers; did you mean 'shop'? It has: shop: correct `pool` of the service" in shown.out


def test_where_there_is_no_balancer_discovery_makes_the_pool(home: Path) -> None:
    found, missing = (
        "  shop: {balancer: lab, instances: ['127.0.0.1:81'], probe: {tcp: true}}\n",
        "  cart: {balancer: lab, probe: {tcp: true}}\n",
    )

    fine = ran(written(home, "  lab: {plugin: memory}\n", "services:\n" + found))
    lacking = ran(written(home, "  lab: {plugin: memory}\n", "services:\n" + found + missing))

    assert fine.code == 0, fine.out
    assert lacking.code == 1
    assert [line.strip() for line in lacking.out.splitlines() if "lacking" in line] == [
        "lacking: lab has no pool 'cart' with servers; it lists none with servers: correct `pool` of the service, or give it `instances`, "
        "which then make the pool"
    ]
    assert "cart: none of its instances is to be seen from here, so none is known" in lacking.out


# ---- our own rights ----


def test_an_api_address_that_is_taken_is_told(home: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        shown = ran(written(home, api=f"{{listen: '127.0.0.1:{taken.getsockname()[1]}', socket: null}}"))

    assert shown.code == 1 and "lacking: api.listen 127.0.0.1:" in shown.out and "is taken by another process" in shown.out
    assert "no problem in it" not in shown.out and "the file itself is sound, but not ready: 1 thing to mend" in shown.out


def test_a_state_folder_that_nobody_could_make_is_told_to_root_too(home: Path) -> None:
    path = Path(written(home))
    path.write_text(path.read_text().replace(f"{home}/state", "/proc/nope"))

    shown = ran(str(path))

    assert shown.code == 1 and "lacking: the state folder /proc/nope" in shown.out and "`" in shown.out


def test_a_state_folder_that_takes_nothing_is_told(home: Path) -> None:
    path = Path(written(home))
    path.write_text(path.read_text().replace(f"{home}/state", "/proc"))

    shown = ran(str(path))

    assert shown.code == 1 and "state folder /proc" in shown.out and "set `state.dir` to another" in shown.out


@pytest.mark.real
def test_the_api_address_of_our_own_daemon_is_not_taken_and_another_state_folder_is_another_daemon(home: Path) -> None:
    daemon = Daemon(home / "run", f"balancers:\n{MEMORY}{SHOP}", port=free_port())
    daemon.start()
    try:
        until(lambda: daemon.ask("/livez")[0] == 200, "the daemon answers")
        own = ran("--json", str(daemon.config)).data["own"]
        other = ran("--json", written(home, api=f"{{listen: '127.0.0.1:{daemon.port}', socket: null}}")).data["own"]
        with socket.socket() as stranger:
            stranger.bind(("127.0.0.1", 0))
            stranger.listen()
            daemon.config.write_text(daemon.config.read_text().replace(str(daemon.port), str(stranger.getsockname()[1])))
            moved = ran("--json", str(daemon.config)).data["own"]
    finally:
        daemon.end()

    assert "lb-sidecar, process" in own["daemon"] and own["lacking"] == []
    assert len(other["lacking"]) == 1 and "is taken by an lb-sidecar that runs with another state folder" in other["lacking"][0]
    assert len(moved["lacking"]) == 1 and "is taken by another process, and not by lb-sidecar, process" in moved["lacking"][0]


def test_an_api_socket_without_a_folder_is_told_if_it_was_asked_for(home: Path) -> None:
    shown = ran(written(home, api=f"{{listen: null, socket: {home}/none/api.sock}}"))

    assert shown.code == 1 and f"its folder {home}/none does not exist" in shown.out


def test_secrets_that_cannot_be_read_are_contradictions(home: Path) -> None:
    api = f"{{listen: null, socket: {home}/api.sock, tokens: {{deploy: {{secret: 'file:{home}/none.token'}}}}}}"

    shown = ran(written(home, api=api))

    assert shown.code == 1 and "contradiction: api.tokens.deploy.secret" in shown.out and f"{home}/none.token" in shown.out


def test_a_probe_that_runs_a_program_needs_a_file_of_roots(home: Path) -> None:
    path = written(home, services="services:\n  shop: {balancer: edge, probe: {command: [/bin/true]}}\n")
    os.chmod(path, 0o666)

    shown = ran(path)

    assert shown.code == 1 and f"`chmod go-w {path}`" in shown.out


@needs_root
def test_nobody_learns_of_each_right_that_is_missing_on_the_machine(home: Path) -> None:
    token = home / "deploy.token"
    token.write_text("a-long-enough-secret\n")
    token.chmod(0o600)
    api = f"{{listen: '127.0.0.1:{free_port()}', socket: {home}/api.sock, tokens: {{deploy: {{secret: 'file:{token}'}}}}}}"

    shown = ran_by_nobody(written(home, api=api))

    assert shown.code == 1
    assert "as nobody (uid 65534" in shown.out
    assert f"the state folder {home}/state does not exist and nobody may not make it in {home}" in shown.out
    assert f"`install -d -m 0750 -o nobody {home}/state`" in shown.out
    assert f"nobody may not write to {home}: `chown nobody {home}`" in shown.out
    assert f"file:{token}: Permission denied" in shown.out
    assert "3 things to mend" in shown.out


@needs_root
def test_a_state_folder_of_root_is_told_to_nobody(home: Path) -> None:
    (home / "state").mkdir(mode=0o755)

    shown = ran_by_nobody(written(home))

    assert shown.code == 1 and f"the state folder {home}/state (state.dir) belongs to root" in shown.out and "`chown -R nobody" in shown.out


@needs_root
def test_folders_that_are_shut_to_nobody_are_told_and_raise_nothing(home: Path) -> None:
    shut = home / "shut"
    (shut / "in").mkdir(parents=True)
    shut.chmod(0o700)

    shown = ran_by_nobody(written(home, state="shut/in/state", api=f"{{listen: null, socket: {shut}/in/api.sock}}"))

    assert shown.code == 1
    assert f"the state folder {shut}/in/state" in shown.out and "no api socket" in shown.out


@needs_root
def test_a_configuration_that_nobody_may_not_read_is_told(home: Path) -> None:
    path = written(home)
    os.chmod(path, 0o600)

    shown = ran_by_nobody(path)

    assert shown.code == 2 and f"{path}:1:1: error: not readable by this user" in shown.out


@needs_root
def test_nobody_with_a_home_of_its_own_is_fine(home: Path) -> None:
    shown = ran_by_nobody(written(home, state="theirs"))

    assert shown.code == 0, shown.out


# ---- HAProxy ----


@pytest.fixture(scope="module", params=VERSIONS)
def haproxy(request: pytest.FixtureRequest) -> Iterator[Box]:
    servers = "\n".join(f"    server {name} 127.0.0.1:{9000 + i} weight 100" for i, name in enumerate("xyz"))
    checked = "\n".join(f"    server {name} 127.0.0.1:{9000 + i} weight 1 check inter 10s" for i, name in enumerate("xyz"))
    folder = Path(tempfile.mkdtemp(prefix="hop"))
    level = f"stats socket {folder}/operator.sock mode 666 level operator"
    box = Box(request.param, f"backend plain\n{servers}\nbackend checked\n{checked}\n", extra_global=level)
    box.dir.chmod(0o755)
    folder.chmod(0o755)
    box.operator_socket = f"{folder}/operator.sock"  # type: ignore[attr-defined]
    yield box
    box.close()
    shutil.rmtree(folder, ignore_errors=True)


TWO = "services:\n  plain: {balancer: edge, probe: {http: /}}\n  checked: {balancer: edge, probe: {http: /}}\n"


def edge(path: str, more: str = "") -> str:
    return f"  edge: {{plugin: haproxy, socket: {path}, timeout: 20s{more}}}\n"


@pytest.mark.real
def test_each_server_of_haproxy_has_its_axis_and_what_follows_from_it(haproxy: Box, home: Path) -> None:
    tap = Tap(str(home / "tap.sock"), haproxy.socket)
    path = written(home, edge(tap.path), TWO)

    shown, data = ran(path), ran("--json", path).data
    tap.close()

    assert shown.code == 0, shown.out
    servers = data["balancers"]["edge"]["servers"]
    assert {(s["pool"], s["axis"]) for s in servers} == {("plain", "E"), ("checked", "D")}
    assert {s["axis"]: (s["checked_while_out_by"], s["returned_if_we_die_by"]) for s in servers} == {a: tuple(HAPROXY[a]) for a in "DE"}
    assert "axis D, while we hold one out, these check it: we alone; HAProxy's own check is off meanwhile" in shown.out
    assert "axis D, HAProxy's own check brings it back last: up to `rise` x `inter`" in shown.out and "2 x 2 s" in shown.out
    assert "pool checked: weight 1 leaves no steps" in shown.out and "pool plain" not in shown.out
    assert set(tap.writes()) == {"set server"}, "which names no server and so changes nothing"
    assert [line.strip() for line in shown.out.splitlines() if line.startswith("  axis ") and ": " in line[:10]] == [
        f"axis {axis}: {HAPROXY_LEVERS[axis]}" for axis in "DE"
    ]


@pytest.mark.real
def test_a_socket_of_a_lesser_level_lacks_a_right_unless_it_only_observes(haproxy: Box, home: Path) -> None:
    path: str = haproxy.operator_socket  # type: ignore[attr-defined]

    acts, observes = ran(written(home, edge(path), TWO)), ran(written(home, edge(path), TWO, more="mode: observe\n"))

    cure = f"`stats socket {path} mode 660 group haproxy level admin`"
    assert acts.code == 1 and f"lacking: {path} is `level operator`" in acts.out and cure in acts.out
    assert observes.code == 0 and "lacking before it may act" in observes.out and cure in observes.out


@pytest.mark.real
def test_a_balancer_that_is_not_there_is_told_beside_one_that_is(haproxy: Box, home: Path) -> None:
    both = edge(haproxy.socket) + "  web: {plugin: haproxy, socket: /nowhere/admin.sock}\n"

    shown = ran(written(home, both, TWO + "  web: {balancer: web, probe: {http: /}}\n"))

    assert shown.code == 1
    assert "edge (haproxy, act): reachable" in shown.out
    assert "web (haproxy, act): not reachable: no socket at /nowhere/admin.sock" in shown.out
    assert "1 thing to mend" in shown.out


@needs_root
@pytest.mark.real
def test_nobody_is_told_how_to_reach_haproxy(haproxy: Box, home: Path) -> None:
    os.chmod(haproxy.socket, 0o600)

    shown = ran_by_nobody(written(home, edge(haproxy.socket), TWO, state="theirs"))

    assert shown.code == 1
    assert f"not reachable: user nobody (uid 65534) may not open {haproxy.socket}" in shown.out
    assert f"`stats socket {haproxy.socket} mode 660 group haproxy level admin`" in shown.out
    assert "`usermod -aG haproxy nobody`" in shown.out


@needs_root
@pytest.mark.real
def test_nobody_with_the_lesser_socket_is_told_the_level(haproxy: Box, home: Path) -> None:
    path: str = haproxy.operator_socket  # type: ignore[attr-defined]

    shown = ran_by_nobody(written(home, edge(path), TWO, state="theirs"))

    assert shown.code == 1
    assert "edge (haproxy, act): reachable" in shown.out and "level admin`" in shown.out
    assert f"advice: the one-writer lock {path}.lb-sidecar.lock cannot be made" in shown.out


@pytest.mark.real
def test_an_agent_check_that_asks_us_is_axis_a_and_needs_no_more_than_level_user(home: Path) -> None:
    port = free_port()

    def server(name: str) -> str:
        agent = f'agent-check agent-inter 200ms agent-addr 127.0.0.1 agent-port {port} agent-send "shop/{name}\\n"'
        return f"    server {name} 127.0.0.1:9001 weight 100 {agent}\n"

    box = Box("2.8", f"backend shop\n{server('x')}{server('y')}")
    try:
        path = written(home, edge(box.user_socket, f", agent: '127.0.0.1:{port}'"), SHOP)
        data = ran("--json", path).data
        assert [s["axis"] for s in data["balancers"]["edge"]["servers"]] == ["A", "A"], data
        assert (data["exit_code"], data["balancers"]["edge"]["lacking"]) == (0, [])
        assert box.status(Ref("shop", "x")) in ("UP", "no check")
    finally:
        box.close()


@pytest.mark.real
def test_servers_that_stand_for_nobody_are_in_nobodys_maintenance_and_a_pool_of_them_is_told(home: Path) -> None:
    unix = f"    server u1 unix@{home}/x.sock\n    server u2 unix@{home}/y.sock\n"
    template = "    server-template t 2 nowhere.invalid:80 resolvers none init-addr none\n"
    box = Box(
        "2.8",
        f"resolvers none\n    nameserver a 127.0.0.1:{free_port()}\n"
        f"backend sockets\n{unix}backend mixed\n    server s1 127.0.0.1:9001 weight 100\n{unix}{template}",
    )
    services = "services:\n  sockets: {balancer: edge, probe: {http: /}}\n  mixed: {balancer: edge, probe: {http: /}}\n"
    try:
        shown = ran(written(home, edge(box.socket), services))
    finally:
        box.close()

    rows = {words[1]: words for line in shown.out.splitlines() if len(words := line.split()) > 3 and words[1].startswith("mixed/")}
    assert rows["mixed/s1"][2:] == ["127.0.0.1:9001", "E", "ready", "yes", "writable"]
    assert rows["mixed/u1"][2:6] == ["none", "E", "-", "yes"] and rows["mixed/t1"][2:6] == ["none", "E", "-", "no"]
    assert "operator's maintenance" not in shown.out and "its name is not resolved now" in shown.out
    assert "no address and port by which to judge it (a unix socket?)" in shown.out
    assert "edge: no server of pool 'sockets' (u1, u2) has an address and port now" in shown.out and "1 thing to mend" in shown.out


@pytest.mark.real
def test_while_the_sidecar_runs_nothing_of_its_own_is_in_the_way() -> None:
    with lab("haproxy-2.8-agent", 3) as box:
        assert box.balancer is not None
        port, log = free_port(), free_port()
        listening = box.balancer.yaml.replace("}", f", agent: '127.0.0.1:{port}', traffic: {{syslog: '127.0.0.1:{log}'}}}}")
        daemon = box.running(f"balancers:\n  edge: {listening}\nservices:\n  shop: {{balancer: edge, probe: {{http: /health}}}}\n")

        found = ran("--json", str(daemon.config))

        assert found.code == 0, found.out
        assert "lb-sidecar, process" in found.data["own"]["daemon"]
        assert "a sidecar runs and listens for it" in found.data["balancers"]["edge"]["advice"][0]
        assert box.in_rotation() == {0, 1, 2}
        assert set(daemon.judgements().values()) == {"healthy"}


# ---- nginx ----


@pytest.fixture(scope="module", params=sorted(BINARIES))
def nginx(request: pytest.FixtureRequest) -> Iterator[NginxLab]:
    folder = Path(tempfile.mkdtemp(prefix="ngc"))
    box = NginxLab(folder, request.param)
    yield box
    box.close()
    shutil.rmtree(folder, ignore_errors=True)


def web(box: NginxLab, more: str = "") -> str:
    places = f"config: {box.config}, servers_dir: {box.servers_dir}, binary: {box.binary}, prefix: {box.home}"
    return f"  edge: {{plugin: nginx, {places}{more}}}\n"


@pytest.mark.real
def test_nginx_is_fine_for_its_own_user_and_its_reload_is_part_of_the_arithmetic(nginx: NginxLab, home: Path) -> None:
    path = written(home, web(nginx), SHOP)
    before, reloads = tree(nginx.home), nginx.reloads()

    shown, data = ran(path), ran("--json", path).data

    assert shown.code == 0, shown.out
    assert "not a reload of nginx, for it is marked `down` in its file" in shown.out
    assert "share its next reload" in shown.out
    assert data["services"]["shop"]["in_force"]["refused"]["most"] == data["services"]["shop"]["detect"]["refused"]["most"] + 2.0
    assert (tree(nginx.home), nginx.reloads()) == (before, reloads)


@pytest.mark.real
def test_an_upstream_that_is_not_moved_yet_is_looked_at_and_told_the_two_lines_to_do(home: Path) -> None:
    (home / "nginx").mkdir()
    box = NginxLab(home / "nginx", "1.22")
    try:
        box.configure(more="  upstream cart { server 127.0.0.1:9001; server 127.0.0.1:9002; }\n")
        both = SHOP + "  cart: {balancer: edge, probe: {http: /}}\n"
        acts, observes = ran(written(home, web(box), both)), ran(written(home, web(box), both, more="mode: observe\n"))
    finally:
        box.close()

    file = box.servers_dir / "cart.conf"
    cure = f"move the `server` lines of `upstream cart` ({box.config} line "
    assert acts.code == 1 and "1 thing to mend" in acts.out, acts.out
    assert f"lacking: edge: no server of pool 'cart' can be taken out: {cure}" in acts.out
    assert f"to {file}; put in their place: include {file};" in acts.out
    assert "correct `pool`" not in acts.out
    assert observes.code == 0 and "lacking before it may act: edge: no server of pool 'cart'" in observes.out
    assert "cart/127.0.0.1:9001" in observes.out and "0 of 2" in observes.out


@needs_root
@pytest.mark.real
def test_nobody_is_told_every_right_that_nginx_takes(nginx: NginxLab, home: Path) -> None:
    shown = ran_by_nobody(written(home, web(nginx), SHOP, state="theirs"))

    assert shown.code == 1
    assert f"`chown nobody {nginx.servers_dir}`" in shown.out
    assert "may not signal nginx, which runs as root" in shown.out and "NOPASSWD" in shown.out
    assert "test: [sudo" in shown.out


@needs_root
@pytest.mark.real
def test_nobody_with_the_rights_is_fine_on_nginx(nginx: NginxLab, home: Path) -> None:
    for path in (nginx.servers_dir, nginx.file):
        os.chown(path, NOBODY, NOBODY)
    try:
        shown = ran_by_nobody(written(home, web(nginx, ", reload: [/bin/true], test: [/bin/true]"), SHOP, state="theirs"))
    finally:
        for path in (nginx.servers_dir, nginx.file):
            os.chown(path, 0, 0)

    assert shown.code == 0, shown.out


@pytest.mark.real
def test_a_stopped_nginx_is_told(home: Path) -> None:
    (home / "nginx").mkdir()
    box = NginxLab(home / "nginx", "1.22")
    box.stop(signal.SIGKILL)
    try:
        shown = ran(written(home, web(box), SHOP))
    finally:
        box.close()

    assert shown.code == 1 and "not reachable: nginx does not run" in shown.out and "start nginx" in shown.out

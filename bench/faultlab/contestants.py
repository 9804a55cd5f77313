"""Who stands between the load and the instances: each balancer with ways of its own, and HAProxy and Nginx with the sidecar.

Everybody: connect timeout 1 s, 3 s for an answer, one thread where that can be said. `balance`: round robin, or least connections.
"""

from __future__ import annotations

import json
import os
import subprocess
import sysconfig
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

from bench.daemon import Daemon
from bench.peers import found
from lbplugins.nginx.traffic import LOG_FORMAT
from sidecar.demo import stage

SCRIPTS, PURE = Path(sysconfig.get_path("scripts")), Path(sysconfig.get_path("purelib"))
SETTLE_S = 3.5
"""How long a balancer runs before the load begins: its first checks are then done."""
STOP_WITHIN_S = 5.0

Balance = Literal["roundrobin", "leastconn"]


@dataclass(frozen=True, slots=True)
class Job:
    """Where to listen and whom to ask. `spare`: two more free ports; `folder`: for this contestant; `settle_s`: of a balancer alone."""

    folder: Path
    listen: int
    ports: Sequence[int]
    spare: Sequence[int]
    balance: Balance = "roundrobin"
    settle_s: float = SETTLE_S


class Running:
    """A contestant under way; `daemon` None = the balancer alone."""

    def __init__(self, process: subprocess.Popen[bytes], daemon: Daemon | None = None) -> None:
        self._process, self.daemon = process, daemon

    def stop(self) -> None:
        """End all of it. Safe twice."""
        if self.daemon is not None:
            self.daemon.end()
        if self._process.poll() is None:
            self._process.terminate()
        try:
            self._process.wait(STOP_WITHIN_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def events(self) -> list[dict[str, Any]]:
        """What the sidecar told, oldest first."""
        return [] if self.daemon is None else self.daemon.events()


@dataclass(frozen=True, slots=True)
class Contestant:
    """`start` gives it settled: ready for load and fault. `retries`: it asks another instance for what one got wrong."""

    name: str
    start: Callable[[Job], Running]
    retries: bool = False

    @property
    def is_ours(self) -> bool:
        return "+us" in self.name


def contestants() -> Iterator[Contestant]:
    """Those that this machine can show; `python -m bench.peers.install` brings the others."""
    haproxy, nginx = next(stage.haproxy_binaries(), None), next(stage.nginx_binaries(), None)
    if haproxy is not None:
        for name, server, defaults in HAPROXY:
            yield Contestant(name, partial(_haproxy, haproxy.path, server=server, defaults=defaults), retries=defaults == RETRY)
    if nginx is not None:
        yield Contestant("nginx", partial(_nginx, nginx.path, location=""), retries=True)
        yield Contestant("nginx-next", partial(_nginx, nginx.path, location=NEXT_5XX), retries=True)
    if envoy := found(str(PURE / "envoy/_bin/envoy"), "envoy"):
        yield Contestant("envoy", partial(_envoy, envoy, "active"))
        yield Contestant("envoy-outlier", partial(_envoy, envoy, "outlier"))
        yield Contestant("envoy-tuned", partial(_envoy, envoy, "tuned"), retries=True)
    if traefik := found(str(SCRIPTS / "traefik"), "traefik"):
        yield Contestant("traefik", partial(_traefik, traefik, interval="1s", timeout="1s"))
        yield Contestant("traefik-200ms", partial(_traefik, traefik, interval="200ms", timeout="100ms"))
    if caddy := found(str(SCRIPTS / "caddy"), "caddy"):
        yield Contestant("caddy", partial(_caddy, caddy, "active"))
        yield Contestant("caddy-passive", partial(_caddy, caddy, "passive"))
        yield Contestant("caddy-tuned", partial(_caddy, caddy, "tuned"), retries=True)
    if haproxy is not None:
        yield Contestant("haproxy+us", partial(_haproxy_and_us, haproxy.path, defaults=""))
        yield Contestant("haproxy+us-retry", partial(_haproxy_and_us, haproxy.path, defaults=RETRY), retries=True)
    if nginx is not None:
        yield Contestant("nginx+us", partial(_nginx_and_us, nginx), retries=True)
        yield Contestant("nginx+us-unix", partial(_nginx_and_us, nginx, over_unix=True), retries=True)


def _launch(folder: Path, argv: Sequence[str]) -> subprocess.Popen[bytes]:
    """With no environment of ours, its output in `log`, and a session of its own: Linux shares processors among those first."""
    env = {"PATH": os.environ.get("PATH", ""), "HOME": str(folder)}
    with (folder / "log").open("ab") as log:
        return subprocess.Popen(argv, cwd=folder, env=env, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True)


def _alone(job: Job, argv: Sequence[str]) -> Running:
    """Started, listening, and settled."""
    began = time.monotonic()
    running = Running(_launch(job.folder, argv))
    try:
        stage.wait_for(job.listen, argv[0].rpartition("/")[2])
    except stage.StageError:
        running.stop()
        raise
    time.sleep(max(0.0, began + job.settle_s - time.monotonic()))
    return running


# ---- HAProxy ----

LOG = "    log global\n    option httplog\n"
RETRY = "    retries 2\n    retry-on all-retryable-errors\n    option redispatch 1\n"
_TUNED = "check inter 200ms fastinter 50ms fall 2 rise 2 observe layer7 error-limit 3 on-error mark-down on-marked-down shutdown-sessions"
HAPROXY = (
    ("haproxy", "check inter 1s fall 3 rise 2", ""),
    ("haproxy-200ms", "check inter 200ms fall 2 rise 2", ""),
    ("haproxy-tuned", _TUNED, RETRY),
)
"""Name, server options, lines of `defaults`."""


def _haproxy_config(job: Job, server: str, defaults: str, log: str = "") -> str:
    check = "    timeout check 100ms\n" if server == _TUNED else ""
    lines = "".join(f"    server s{i} 127.0.0.1:{port} {_agent_line(server, i)}\n" for i, port in enumerate(job.ports, 1))
    return f"""global
    nbthread 1
    maxconn 4000
    stats socket {job.folder}/admin.sock mode 600 level admin expose-fd listeners
    stats timeout 30s
{log}defaults
    mode http
    timeout connect 1s
    timeout client 30s
    timeout server 3s
    option redispatch
{LOG if log else ""}{defaults}{check}frontend web
    bind 127.0.0.1:{job.listen}
    default_backend shop
backend shop
    balance {job.balance}
    option httpchk
    http-check send meth GET uri /health ver HTTP/1.1 hdr Host a
    http-check expect status 200
{lines}"""


def _agent_line(server: str, i: int) -> str:
    return f'{server} agent-send "shop/s{i}\\n"' if "agent-check" in server else server


def _haproxy(path: str, job: Job, *, server: str, defaults: str) -> Running:
    (job.folder / "haproxy.cfg").write_text(_haproxy_config(job, server, defaults))
    return _alone(job, [path, "-db", "-q", "-f", "haproxy.cfg"])


def _haproxy_and_us(path: str, job: Job, *, defaults: str) -> Running:
    """As deploy/haproxy has it: weights, the agent line, its own plain check every 2 s, and the log to the sidecar."""
    log, agent = job.spare
    server = f"check inter 2s fall 3 rise 2 weight 100 agent-check agent-inter 1s agent-addr 127.0.0.1 agent-port {agent}"
    config = _haproxy_config(job, server, defaults, f"    log 127.0.0.1:{log} len 2048 format raw local0 info\n")
    plain = "\n".join(line for line in config.split("\n") if "httpchk" not in line and "http-check" not in line)
    (job.folder / "haproxy.cfg").write_text(plain)
    balancer = f"{{plugin: haproxy, socket: {job.folder}/admin.sock, agent: 127.0.0.1:{agent}, traffic: {{syslog: '127.0.0.1:{log}'}}}}"
    return _with_us(job, [path, "-db", "-q", "-f", "haproxy.cfg"], balancer)


def _with_us(job: Job, argv: Sequence[str], balancer: str) -> Running:
    """The balancer and, with its defaults, the sidecar; settled = it knows every instance and holds to its bounds."""
    process = _launch(job.folder, argv)
    config = f"balancers:\n  edge: {balancer}\nservices:\n  shop: {{balancer: edge, probe: {{http: /health}}}}\n"
    running = Running(process, daemon := Daemon(job.folder / "us", config))
    try:
        stage.wait_for(job.listen, argv[0].rpartition("/")[2])
        daemon.start()
        daemon.wait_healthy(job.ports, learned=True)
    except BaseException:
        running.stop()
        raise
    return running


# ---- Nginx ----

NEXT_5XX = "proxy_next_upstream error timeout http_500 http_502 http_503 http_504;"


def _nginx_config(job: Job, upstream: str, location: str, access: str) -> str:
    folder = job.folder
    temporary = "".join(f"    {kind}_temp_path {folder}/{kind};\n" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi"))
    return f"""{"user root root;" if os.geteuid() == 0 else ""}
worker_processes 1;
pid {folder}/nginx.pid;
error_log {folder}/error.log notice;
worker_shutdown_timeout 30s;
events {{ worker_connections 4000; }}
http {{
{temporary}    {access}
    upstream shop {{ {"least_conn; " if job.balance == "leastconn" else ""}{upstream} }}
    server {{
        listen 127.0.0.1:{job.listen};
        location / {{
            proxy_pass http://shop;
            proxy_http_version 1.1;
            proxy_set_header Connection "";
            proxy_connect_timeout 1s;
            proxy_read_timeout 3s;
            {location}
        }}
    }}
}}
"""


def _nginx_argv(path: str, folder: Path) -> list[str]:
    return [path, "-p", f"{folder}/", "-c", str(folder / "nginx.conf"), "-e", str(folder / "error.log"), "-g", "daemon off;"]


def _nginx(path: str, job: Job, *, location: str) -> Running:
    servers = " ".join(f"server 127.0.0.1:{port};" for port in job.ports)
    (job.folder / "nginx.conf").write_text(_nginx_config(job, f"{servers} keepalive 64;", location, "access_log off;"))
    return _alone(job, _nginx_argv(path, job.folder))


def _nginx_and_us(binary: stage.Binary, job: Job, *, over_unix: bool = False) -> Running:
    """As deploy/nginx has it, or with the log over a unix socket, which nobody else can write to: Nginx has no counters to confirm it."""
    folder, managed = job.folder, job.folder / "sidecar.d"
    log = f"unix:{folder}/log.sock" if over_unix else f"127.0.0.1:{job.spare[0]}"
    managed.mkdir()
    (managed / "shop.conf").write_text("".join(f"server 127.0.0.1:{port};\n" for port in job.ports))
    access = f"{LOG_FORMAT}\n    access_log syslog:server={log},tag=lb,nohostname,severity=info lb_sidecar;"
    upstream = f"zone shop 64k; include {managed}/shop.conf; keepalive 32;"
    retry = "proxy_next_upstream error timeout; proxy_next_upstream_tries 2;"
    (folder / "nginx.conf").write_text(_nginx_config(job, upstream, retry, access))
    balancer = (
        f"{{plugin: nginx, config: {folder}/nginx.conf, servers_dir: {managed}, reload: signal, binary: {binary.path}, prefix: {folder}/, "
        f"traffic: {{syslog: '{log}'}}}}"
    )
    return _with_us(job, _nginx_argv(binary.path, folder), balancer)


# ---- Envoy ----


def _envoy(path: str, way: Literal["active", "outlier", "tuned"], job: Job) -> Running:
    is_tuned = way == "tuned"
    every = "0.2s" if is_tuned else "1s"
    check = {
        "timeout": "0.1s" if is_tuned else "1s",
        "interval": every,
        "no_traffic_interval": every,
        "initial_jitter": every,
        "unhealthy_threshold": 2 if is_tuned else 3,
        "healthy_threshold": 2,
        "http_health_check": {"path": "/health", "host": "a"},
    }
    cluster: dict[str, object] = {
        "name": "shop",
        "type": "STATIC",
        "connect_timeout": "1s",
        "lb_policy": "LEAST_REQUEST" if is_tuned or job.balance == "leastconn" else "ROUND_ROBIN",
        "load_assignment": {"cluster_name": "shop", "endpoints": [{"lb_endpoints": [_endpoint(port) for port in job.ports]}]},
        "health_checks": [check],
    }
    if way != "active":
        cluster["outlier_detection"] = {"interval": "1s", "base_ejection_time": "10s", "max_ejection_percent": 50} if is_tuned else {}
    route: dict[str, object] = {"cluster": "shop", "timeout": "3s"}
    if is_tuned:
        route["retry_policy"] = {
            "retry_on": "5xx,reset,connect-failure",
            "num_retries": 1,
            "per_try_timeout": "0.25s",
            "retry_host_predicate": [_typed("previous_hosts", "retry.host.previous_hosts.v3.PreviousHostsPredicate")],
            "host_selection_retry_max_attempts": 3,
        }
    (job.folder / "envoy.json").write_text(json.dumps({"static_resources": {"clusters": [cluster], "listeners": [_listener(job, route)]}}))
    return _alone(job, [path, "-c", "envoy.json", "--concurrency", "1", "-l", "error", "--use-dynamic-base-id"])


def _endpoint(port: int) -> Mapping[str, object]:
    return {"endpoint": {"address": {"socket_address": {"address": "127.0.0.1", "port_value": port}}}}


def _typed(name: str, kind: str, more: Mapping[str, object] | None = None) -> Mapping[str, object]:
    full = f"type.googleapis.com/envoy.extensions.{kind}"
    key = f"envoy.{'retry_host_predicates' if 'retry' in kind else 'filters'}.{name}"
    return {"name": key, "typed_config": {"@type": full, **(more or {})}}


def _listener(job: Job, route: Mapping[str, object]) -> Mapping[str, object]:
    manager = {
        "stat_prefix": "web",
        "route_config": {"virtual_hosts": [{"name": "all", "domains": ["*"], "routes": [{"match": {"prefix": "/"}, "route": route}]}]},
        "http_filters": [_typed("http.router", "filters.http.router.v3.Router")],
    }
    http = _typed("network.http_connection_manager", "filters.network.http_connection_manager.v3.HttpConnectionManager", manager)
    address = {"socket_address": {"address": "127.0.0.1", "port_value": job.listen}}
    return {"name": "web", "address": address, "filter_chains": [{"filters": [http]}]}


# ---- Traefik, Caddy ----


def _traefik(path: str, job: Job, *, interval: str, timeout: str) -> Running:
    balancer: dict[str, object] = {
        "servers": [{"url": f"http://127.0.0.1:{port}"} for port in job.ports],
        "healthCheck": {"path": "/health", "interval": interval, "timeout": timeout},
        "serversTransport": "all",
    }
    if job.balance == "leastconn":
        balancer["strategy"] = "p2c"
    http = {
        "routers": {"all": {"rule": "PathPrefix(`/`)", "service": "shop"}},
        "services": {"shop": {"loadBalancer": balancer}},
        "serversTransports": {"all": {"forwardingTimeouts": {"dialTimeout": "1s", "responseHeaderTimeout": "3s"}}},
    }
    (job.folder / "dynamic.yaml").write_text(json.dumps({"http": http}))  # JSON is YAML
    static = {
        "entryPoints": {"web": {"address": f"127.0.0.1:{job.listen}"}},
        "providers": {"file": {"filename": str(job.folder / "dynamic.yaml"), "watch": False}},
        "log": {"level": "ERROR"},
        "global": {"checkNewVersion": False, "sendAnonymousUsage": False},
    }
    (job.folder / "traefik.yaml").write_text(json.dumps(static))
    return _alone(job, [path, "--configFile=traefik.yaml"])


def _caddy(path: str, way: Literal["active", "passive", "tuned"], job: Job) -> Running:
    is_tuned = way == "tuned"
    active = {
        "uri": "/health",
        "interval": "200ms" if is_tuned else "1s",
        "timeout": "100ms" if is_tuned else "1s",
        "expect_status": 200,
    }
    checks: dict[str, object] = {"active": active}
    if way != "active":
        checks["passive"] = {"fail_duration": "10s", "max_fails": 3, "unhealthy_status": [5], "unhealthy_latency": "100ms"}
    balancing: dict[str, object] = {"selection_policy": {"policy": "least_conn" if job.balance == "leastconn" else "round_robin"}}
    if is_tuned:
        balancing |= {"try_duration": "1s", "try_interval": "20ms"}
    proxy = {
        "handler": "reverse_proxy",
        "upstreams": [{"dial": f"127.0.0.1:{port}"} for port in job.ports],
        "health_checks": checks,
        "load_balancing": balancing,
        "transport": {"protocol": "http", "dial_timeout": "1s", "response_header_timeout": "3s"},
    }
    server = {"listen": [f"127.0.0.1:{job.listen}"], "automatic_https": {"disable": True}, "routes": [{"handle": [proxy]}]}
    config = {
        "admin": {"disabled": True, "config": {"persist": False}},
        "logging": {"logs": {"default": {"level": "ERROR"}}},
        "apps": {"http": {"servers": {"s": server}}},
    }
    (job.folder / "caddy.json").write_text(json.dumps(config))
    return _alone(job, [path, "run", "--config", "caddy.json"])

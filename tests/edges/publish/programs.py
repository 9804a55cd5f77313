"""Real receivers: Prometheus, carbon with graphite-web, rsyslog, an OpenSearch look-alike. Each in a folder of its own, stopped by pid."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from tests.edges.publish.receiver import PATIENCE_S, bound


def free_port() -> int:
    with contextlib.closing(bound()) as place:
        port: int = place.getsockname()[1]
        return port


def needed(name: str, *, folder: str = "/usr/bin") -> str:
    """The path of a program that deploy/system-packages installs."""
    found = shutil.which(name, path=f"{folder}:{os.environ.get('PATH', '')}")
    assert found is not None, f"{name} is missing: run deploy/system-packages"
    return found


@contextlib.contextmanager
def running(argv: Sequence[str], folder: Path, is_ready: Callable[[], bool], env: Mapping[str, str] | None = None) -> Iterator[None]:
    """A program for the length of the block."""
    with open(folder / "output.log", "ab") as output:
        program = subprocess.Popen(argv, cwd=folder, stdin=subprocess.DEVNULL, stdout=output, stderr=output, env=env)
    try:
        wait_for(lambda: _alive(program, folder) and is_ready())
        yield
    finally:
        program.terminate()
        try:
            program.wait(PATIENCE_S)
        except subprocess.TimeoutExpired:
            program.kill()
            program.wait()


def _alive(program: subprocess.Popen[bytes], folder: Path) -> bool:
    assert program.poll() is None, (folder / "output.log").read_text(errors="replace")[-2000:]
    return True


def wait_for(condition: Callable[[], object], patience_s: float = PATIENCE_S) -> None:
    """Until it is so; the patience is for a busy machine, not a measure."""
    deadline = time.monotonic() + patience_s
    while not condition():
        assert time.monotonic() < deadline, f"not so after {patience_s} s: {condition}"
        time.sleep(0.05)


def get(url: str, **query: str) -> bytes | None:
    """The body of a 200, None for anything else."""
    full = f"{url}?{urllib.parse.urlencode(query)}" if query else url
    try:
        with urllib.request.urlopen(full, timeout=10) as answer:
            body: bytes = answer.read()
            return body
    except OSError:
        return None


def get_json(url: str, **query: str) -> Any:
    body = get(url, **query)
    return None if body is None else json.loads(body)


class Prometheus:
    """Scrapes `jobs` (name -> (port, path)) every second, takes remote writes, knows native histograms."""

    def __init__(self, folder: Path, jobs: Mapping[str, tuple[int, str]]) -> None:
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self._folder = folder
        scrapes = [
            {"job_name": name, "metrics_path": path, "static_configs": [{"targets": [f"127.0.0.1:{port}"]}]}
            for name, (port, path) in jobs.items()
        ]
        config = {"global": {"scrape_interval": "1s", "scrape_timeout": "1s"}, "scrape_configs": scrapes}
        (folder / "prometheus.yml").write_text(json.dumps(config))  # JSON is YAML

    def run(self) -> contextlib.AbstractContextManager[None]:
        argv = [
            needed("prometheus"),
            f"--config.file={self._folder}/prometheus.yml",
            f"--storage.tsdb.path={self._folder}/data",
            f"--web.listen-address=127.0.0.1:{self.port}",
            "--web.enable-remote-write-receiver",
            "--enable-feature=native-histograms",
            "--log.level=warn",
        ]
        return running(argv, self._folder, lambda: get(f"{self.url}/-/ready") is not None)

    def query(self, expression: str) -> list[dict[str, Any]]:
        found = get_json(f"{self.url}/api/v1/query", query=expression)
        return found["data"]["result"] if found else []

    def value(self, expression: str) -> float | None:
        """The one value of an expression; None while there is none."""
        found = self.query(expression)
        return float(found[0]["value"][1]) if len(found) == 1 else None


class Graphite:
    """carbon with its line and pickle receivers, and graphite-web, both from the distribution."""

    def __init__(self, folder: Path) -> None:
        self.line_port, self.pickle_port, self._query_port, self._web_port = (free_port() for _ in range(4))
        self.url = f"http://127.0.0.1:{self._web_port}"
        self._folder = folder
        for name in ("storage/whisper", "storage/log/webapp", "conf"):
            (folder / name).mkdir(parents=True)
        (folder / "conf/carbon.conf").write_text(self._carbon_conf())
        (folder / "conf/storage-schemas.conf").write_text("[default]\npattern = .*\nretentions = 1s:1h\n")
        (folder / "conf/storage-aggregation.conf").write_text("[default]\npattern = .*\nxFilesFactor = 0\naggregationMethod = last\n")
        (folder / "settings_of_test.py").write_text(self._settings())
        (folder / "serve.py").write_text(_SERVE)

    @contextlib.contextmanager
    def carbon(self) -> Iterator[None]:
        argv = [needed("carbon-cache"), f"--config={self._folder}/conf/carbon.conf", "--nodaemon", "start"]
        with running(argv, self._folder, lambda: _listens(self.line_port) and _listens(self.pickle_port)):
            yield

    @contextlib.contextmanager
    def web(self) -> Iterator[None]:
        env = {
            "PATH": "/usr/bin:/bin",
            "PYTHONPATH": str(self._folder),
            "GRAPHITE_SETTINGS_MODULE": "settings_of_test",
            "DJANGO_SETTINGS_MODULE": "graphite.settings",
        }
        subprocess.run(
            [needed("graphite-manage"), "migrate", "--run-syncdb"], cwd=self._folder, env=env, check=True, capture_output=True, timeout=60
        )
        argv = ["/usr/bin/python3", f"{self._folder}/serve.py", str(self._web_port)]
        with running(argv, self._folder, lambda: get(f"{self.url}/metrics/find", query="*") is not None, env):
            yield

    def points(self, target: str) -> list[tuple[float, int]]:
        """(value, seconds since 1970) of the last ten minutes of the one series that the target gives."""
        found = get_json(f"{self.url}/render", target=target, format="json", noNullPoints="true", **{"from": "-600s"})
        return [(value, when) for value, when in found[0]["datapoints"]] if found else []

    def _carbon_conf(self) -> str:
        lines = {
            "STORAGE_DIR": self._folder / "storage", "CONF_DIR": self._folder / "conf", "LOCAL_DATA_DIR": self._folder / "storage/whisper",
            "LOG_DIR": self._folder / "storage/log", "PID_DIR": self._folder / "storage", "USER": "",
            "LINE_RECEIVER_INTERFACE": "127.0.0.1", "LINE_RECEIVER_PORT": self.line_port, "ENABLE_UDP_LISTENER": False,
            "PICKLE_RECEIVER_INTERFACE": "127.0.0.1", "PICKLE_RECEIVER_PORT": self.pickle_port,
            "CACHE_QUERY_INTERFACE": "127.0.0.1", "CACHE_QUERY_PORT": self._query_port, "MAX_CACHE_SIZE": "inf",
            "MAX_UPDATES_PER_SECOND": 1000, "MAX_CREATES_PER_MINUTE": "inf", "CARBON_METRIC_INTERVAL": 0,
            "ENABLE_TAGS": True, "GRAPHITE_URL": self.url,
        }  # fmt: skip
        return "[cache]\n" + "".join(f"{key} = {value}\n" for key, value in lines.items())

    def _settings(self) -> str:
        storage = self._folder / "storage"
        return (
            f"SECRET_KEY = 'only a test'\nALLOWED_HOSTS = ['*']\nTIME_ZONE = 'UTC'\nSTORAGE_DIR = '{storage}'\n"
            f"CONF_DIR = '{self._folder}/conf'\nWHISPER_DIR = '{storage}/whisper'\nSTANDARD_DIRS = [WHISPER_DIR]\n"
            f"LOG_DIR = '{storage}/log/webapp'\nINDEX_FILE = '{storage}/index'\nCARBONLINK_HOSTS = ['127.0.0.1:{self._query_port}']\n"
            f"DATABASES = {{'default': {{'NAME': '{storage}/graphite.db', 'ENGINE': 'django.db.backends.sqlite3'}}}}\n"
        )


_SERVE = """
import sys
from socketserver import ThreadingMixIn
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

from graphite.wsgi import application


class Threading(ThreadingMixIn, WSGIServer):
    daemon_threads = True


make_server("127.0.0.1", int(sys.argv[1]), application, Threading, WSGIRequestHandler).serve_forever()
"""


class Rsyslog:
    """rsyslog as a receiver of JSON lines over TCP and UDP: what parses goes to `lines`, what does not to `bad`."""

    def __init__(self, folder: Path) -> None:
        self.port = free_port()
        self._folder = folder
        self._out, self._bad = folder / "out.json", folder / "bad.log"
        (folder / "rsyslog.conf").write_text(f"""
module(load="imtcp") module(load="imudp") module(load="mmjsonparse")
global(workDirectory="{folder}" maxMessageSize="64k")
template(name="line" type="list"){{ property(name="$!all-json-plain") constant(value="\\n") }}
ruleset(name="json"){{
  action(type="mmjsonparse" cookie="")
  if $parsesuccess == "OK" then action(type="omfile" file="{self._out}" template="line" asyncWriting="off" flushOnTXEnd="on")
  else action(type="omfile" file="{self._bad}")
}}
input(type="imtcp" port="{self.port}" address="127.0.0.1" ruleset="json")
input(type="imudp" port="{self.port}" address="127.0.0.1" ruleset="json")
""")

    def run(self) -> contextlib.AbstractContextManager[None]:
        argv = [needed("rsyslogd", folder="/usr/sbin"), "-n", "-f", f"{self._folder}/rsyslog.conf", "-i", f"{self._folder}/pid"]
        return running(argv, self._folder, lambda: _listens(self.port))

    def documents(self) -> list[dict[str, Any]]:
        """Of every whole line."""
        return [json.loads(line) for line in self._out.read_bytes().split(b"\n")[:-1]] if self._out.exists() else []

    def bad(self) -> str:
        return self._bad.read_text() if self._bad.exists() else ""


class OpenSearch:
    """osmem, which keeps OpenSearch's documents in memory."""

    def __init__(self, folder: Path) -> None:
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self._folder = folder

    def run(self) -> contextlib.AbstractContextManager[None]:
        argv = [sys.executable, "-c", _OSMEM, f"127.0.0.1:{self.port}"]
        return running(argv, self._folder, lambda: get(self.url) is not None)

    def search(self, index: str, body: Mapping[str, Any]) -> Any:
        return self._ask("POST", f"{index}/_search", body)

    def put(self, index: str, body: Mapping[str, Any]) -> Any:
        return self._ask("PUT", index, body)

    def _ask(self, method: str, path: str, body: Mapping[str, Any]) -> Any:
        data, headers = json.dumps(body).encode(), {"Content-Type": "application/json"}
        request = urllib.request.Request(f"{self.url}/{path}", data, headers, method=method)
        with urllib.request.urlopen(request, timeout=10) as answer:
            return json.loads(answer.read())


_OSMEM = """
import signal, sys, threading
from osmem_server import OsmemServer

server = OsmemServer.start(addr=sys.argv[1])
ended = threading.Event()
signal.signal(signal.SIGTERM, lambda *_: ended.set())
ended.wait()
server.close()
"""


def _listens(port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
        return True
    return False

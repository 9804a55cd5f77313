"""A simulated nginx: its files, `nginx -t`, HUP with generations of workers, and who serves. Pure, and held against the real ones.

    sim = SimNginx({"/etc/nginx/nginx.conf": "...", "/etc/nginx/sidecar.d/shop.conf": "server 10.0.0.5:80;\\n"}, "1.22")
    sim.test()                # (0, ""), or (1, what nginx -t -q says)
    sim.reload(now=1.0)       # HUP: says nothing; what became of it shows in `workers`, `error_log` and `serving`

A change of `files` counts only from the next reload on, as on disk.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, MutableMapping
from dataclasses import dataclass, field

from tests.sim.nginx_config import Emergency, Loaded, load

VERSIONS = ("1.22", "1.31")
IN_USE = {"1.22": "98: Address already in use", "1.31": "98: Address in use"}
"""The words of the C library that each is built with."""

LONGEST_FAULT = 1024
"""Bytes of what is wrong, before the place where."""

BIND_TRIES_S = 2.5
"""How long a master tries to bind an address that is taken, before it gives the new configuration up."""


@dataclass(slots=True)
class Worker:
    """One worker process. `busy`: requests that it still answers; while it leaves, it lives as long as there are any."""

    pid: int
    began: float
    busy: int = 0


@dataclass(slots=True)
class Generation:
    """The workers of one loaded configuration."""

    loaded: Loaded
    workers: list[Worker] = field(default_factory=list)


class SimNginx:
    """One nginx master with its workers. Owner of its files and all its state; the caller brings the time, monotonic seconds."""

    def __init__(
        self,
        files: MutableMapping[str, str],
        version: str = "1.31",
        *,
        config: str = "/etc/nginx/nginx.conf",
        now: float = 0.0,
        resolves: Callable[[str], bool] = lambda host: host == "localhost",
    ) -> None:
        """Emergency when it cannot start. `resolves`: whether a host name has an address."""
        if version not in VERSIONS:
            raise ValueError(f"version {version!r} is none of {VERSIONS}")
        self.files, self.version, self.config, self.resolves = files, version, config, resolves
        self.taken: set[str] = set()
        """Addresses that somebody else listens at; they are ours as long as we hold them already."""
        self.error_log: list[str] = []
        self.master, self._pid = 2000, 2000
        self.leaving: list[Worker] = []
        self.current = Generation(self._load())
        self._binding: tuple[Loaded, float] | None = None
        self._has_heard = False
        self._fork(now)

    def _load(self) -> Loaded:
        return load(self.files, self.config, self.version, self.resolves)

    # ---- what one does to it ----

    def test(self, now: float = 0.0) -> tuple[int, str]:
        """Exit code and output of `nginx -t -q`. A port that is taken does not count here."""
        return judge(self.files, self.config, self.version, self.resolves)

    def reload(self, now: float) -> None:
        """HUP. It gives no answer: a wrong configuration is logged and the old one goes on, a port that is taken is tried for 2.5 s.

        A master that tries to bind hears the next HUP only when it has done with that.
        """
        if self._binding is not None:
            self._has_heard = True
            return
        try:
            loaded = self._load()
        except Emergency as fault:
            self._log(_told(fault))
            return
        if conflicts := self._conflicts(loaded):
            for at in conflicts:
                self._log(f"bind() to {at} failed ({IN_USE[self.version]})")
            self._binding = loaded, now + BIND_TRIES_S
            return
        self._take(loaded, now)

    def tick(self, now: float) -> None:
        """A master that tries to bind gets what has become free, or gives up; old workers without requests end."""
        if self._binding is not None:
            loaded, late = self._binding
            is_free = not self._conflicts(loaded)
            if is_free or now >= late:
                self._binding = None
                if is_free:
                    self._take(loaded, now)
                else:
                    self._log("still could not bind()")
                if self._has_heard:
                    self._has_heard = False
                    self.reload(now)
        self.leaving = [worker for worker in self.leaving if worker.busy]

    def _log(self, text: str) -> None:
        self.error_log.append(f"[emerg] {self.master}#{self.master}: {text}")

    def restart(self, now: float) -> None:
        """Stopped and started. Emergency: it is not running any more."""
        self.leaving.clear()
        self.current.workers.clear()
        self._binding, self._has_heard = None, False
        loaded = self._load()
        if taken := [at for at in loaded.listens if at in self.taken]:
            raise Emergency(f"bind() to {taken[0]} failed ({IN_USE[self.version]})")
        self.master = self._next_pid()
        self.current = Generation(loaded)
        self._fork(now)

    # ---- what one sees of it ----

    @property
    def workers(self) -> list[Worker]:
        """Those that take new requests."""
        return self.current.workers

    @property
    def is_binding(self) -> bool:
        """It tries to get an address that is taken; the old configuration serves meanwhile."""
        return self._binding is not None

    def serving(self, upstream: str) -> dict[str, int]:
        """Who gets new requests of this upstream, by address, with its share; {} = nobody, or no such upstream."""
        found = self.current.loaded.upstreams.get(upstream)
        return found.shares() if found is not None else {}

    def _conflicts(self, loaded: Loaded) -> list[str]:
        return [at for at in loaded.listens if at in self.taken and at not in self.current.loaded.listens]

    def _take(self, loaded: Loaded, now: float) -> None:
        self.leaving += self.current.workers
        self.current = Generation(loaded)
        self._fork(now)
        self.tick(now)

    def _fork(self, now: float) -> None:
        self.current.workers = [Worker(self._next_pid(), now) for _ in range(self.current.loaded.workers)]

    def _next_pid(self) -> int:
        self._pid += 1
        return self._pid


def judge(files: Mapping[str, str], config: str, version: str, resolves: Callable[[str], bool]) -> tuple[int, str]:
    """Exit code and output of `nginx -t -q` for these files."""
    try:
        load(files, config, version, resolves)
    except Emergency as fault:
        return 1, f"nginx: [emerg] {_told(fault)}\nnginx: configuration file {config} test failed\n"
    return 0, ""


def _told(fault: Emergency) -> str:
    """As nginx writes it: the bytes it read, whatever they mean, and of its own words no more than it has room for."""
    text = str(fault).encode("latin-1", "replace")
    what, _, where = text.rpartition(b" in ")
    if len(what) > LONGEST_FAULT and re.fullmatch(rb"\S+:\d+", where):
        text = what[:LONGEST_FAULT] + b" in " + where
    return text.decode("utf-8", "replace")


__all__ = ["BIND_TRIES_S", "VERSIONS", "SimNginx", "Worker", "judge"]

"""Hostile instances against the real probe engine, alone and a hundred at once: `python -m tests.campaigns.behaviours`.

The zoo lives in a process of its own, so that its work is not taken for ours. Of each behaviour: every probe ends within its timeout and
100 ms, with the right reason; how much memory a hundred at once take at their peak beyond a hundred good ones; and how long one turn of our
loop takes. A turn is measured in processor time of its thread: what other processes take from us on a full machine is not our lag.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import gc
import gzip
import multiprocessing
import os
import socket
import ssl
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import trustme

from lbplugins.values import Address
from sidecar.core.model import Ask, Outcome, Reason, Result, Target
from sidecar.net.lag import LagMeter
from sidecar.probes.engine import Engine
from sidecar.probes.options import ProbeSpec
from tests.edges import zoo
from tests.edges.probes.lab import Recorder, authority, ca_file, server_context
from tests.edges.probes.test_zoo_http import CHUNKED, OK, SLOW, WRONG
from tests.edges.probes.test_zoo_tls import GRPC

AT_ONCE = 100
SPREAD_S = 1.0
SHORT_S, AMPLE_S = 0.5, 8.0
ENDS_WITHIN_S = 0.1
MOST_MEMORY = 5 << 20
MOST_LAG_S = 0.05
TRIES = 4
"""A probe that our own machine was too late for says so, and is asked again."""
HTTP: Mapping[str, Any] = {"http": "/health"}

# ---- behaviours that the zoo of the tests does not have ----


def trickle(sock: socket.socket) -> None:
    """A chunk of one byte every 0.5 s."""
    zoo.read_request(sock)
    sock.sendall(CHUNKED)
    while True:
        sock.sendall(b"1\r\nx\r\n")
        time.sleep(0.5)


def ten_gigabytes(sock: socket.socket) -> None:
    """A body of 10 GB, as fast as it is taken."""
    zoo.read_request(sock)
    sock.sendall(OK + b"Content-Length: 10737418240\r\n\r\n")
    while True:
        sock.sendall(b"x" * 65536)


@cache
def bomb() -> bytes:
    """200 MB in 200 KB."""
    return gzip.compress(b"\0" * 200_000_000, 9)


def gzip_bomb(sock: socket.socket) -> None:
    zoo.read_request(sock)
    sock.sendall(zoo.answer(bomb(), headers=b"Content-Encoding: gzip\r\n"))
    zoo.wait_for_end(sock)


def redirect_loop(sock: socket.socket) -> None:
    while zoo.read_request(sock):
        sock.sendall(zoo.answer(b"", "302 Found", b"Location: /health\r\n"))


def half_handshake(sock: socket.socket) -> None:
    """Everything that a server of TLS 1.2 says first, then nothing."""
    context = server_context("shop.example")
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    heard, said = ssl.MemoryBIO(), ssl.MemoryBIO()
    half = context.wrap_bio(heard, said, server_side=True)
    heard.write(sock.recv(4096))
    with contextlib.suppress(ssl.SSLWantReadError):
        half.do_handshake()
    sock.sendall(said.read())
    zoo.wait_for_end(sock)


def reset_after(said: bytes) -> zoo.Behaviour:
    """To a request this, and RST once it has surely arrived: at once it would take with it what was said."""

    def behave(sock: socket.socket) -> None:
        zoo.read_request(sock)
        sock.sendall(said)
        time.sleep(0.2)
        zoo.reset(sock)

    return behave


def flooding(*first: bytes, then: bytes) -> zoo.Behaviour:
    """To the first bytes heard `first`, then `then` without end."""

    def behave(sock: socket.socket) -> None:
        sock.recv(4096)
        for part in first:
            sock.sendall(part)
        while True:
            sock.sendall(then)

    return behave


def dripping(data: bytes) -> zoo.Behaviour:
    """To the first bytes heard these, one every 50 ms."""

    def behave(sock: socket.socket) -> None:
        sock.recv(4096)
        for byte in data:
            sock.sendall(bytes([byte]))
            time.sleep(0.05)

    return behave


def speaking(data: bytes, then: zoo.Behaviour = zoo.wait_for_end) -> zoo.Behaviour:
    """To the first bytes heard these."""

    def behave(sock: socket.socket) -> None:
        sock.recv(4096)
        sock.sendall(data)
        then(sock)

    return behave


def torn(sock: socket.socket) -> None:
    """Half a body, then the connection under TLS is closed without a word."""
    zoo.read_request(sock)
    sock.sendall(zoo.answer(b"half a body")[:-5])
    sock.shutdown(socket.SHUT_RDWR)


ALERT = b"\x15\x03\x03\x00\x02\x02\x28"
"""TLS: fatal, handshake failure."""
RECORD = b"\x16\x03\x03\x40\x00"
"""The head of a TLS record of 16 KiB."""
SETTINGS = b"\0\0\0\4\0\0\0\0\0"
"""HTTP/2: an empty frame of settings."""

# ---- the list ----

TlsKind = str


@dataclass(frozen=True, slots=True)
class Hostile:
    """One behaviour, how it is asked, and what must come of it. `reason` None = a good answer; `or_else`: as right, by what comes first.

    `tls`: how the zoo's own certificate is, '' = it speaks plainly. `asks`: how many connections a probe may open at most.
    """

    name: str
    behaviour: zoo.Behaviour
    reason: Reason | None
    detail: str = ""
    keys: Mapping[str, Any] = field(default_factory=lambda: HTTP)
    timeout_s: float = AMPLE_S
    tls: TlsKind = ""
    or_else: tuple[Reason, ...] = ()


def hostiles(ca: str) -> list[Hostile]:
    """All of them. `ca`: the file of the authority that the zoo's certificates are from."""
    trusting = {"https": "/", "host": "shop.example", "tls": {"ca": ca}}
    modern = {**trusting, "tls": {"ca": ca, "min_version": "1.3"}}
    only_200 = {"http": "/", "expect": {"status": 200}}
    bad, tls, timeout, reset = Reason.BAD_RESPONSE, Reason.TLS, Reason.TIMEOUT, Reason.RESET
    return [
        *(Hostile(name, behaviour, reason, detail) for name, behaviour, reason, detail in WRONG),
        *(Hostile(name, behaviour, timeout, detail, timeout_s=SHORT_S) for name, behaviour, detail in SLOW),
        *(Hostile(f"gRPC: {name}", behaviour, reason, detail, {"grpc": service}) for name, behaviour, service, reason, detail in GRPC),
        Hostile("RST at accept", zoo.reset_at_accept, reset),
        Hostile("a byte per 0.5 s", trickle, timeout, "body", timeout_s=SHORT_S),
        Hostile("10 GB", ten_gigabytes, None),
        Hostile("10 GB, looked into", ten_gigabytes, Reason.BODY, keys={"http": "/", "expect": {"body": "all is well"}}),
        Hostile("chunks without end", zoo.endless_body, None),
        Hostile("200 KB that are 200 MB", gzip_bomb, None),
        Hostile("200 KB that are 200 MB, looked into", gzip_bomb, Reason.BODY, keys={"http": "/", "expect": {"body": "all is well"}}),
        Hostile("a redirect to itself", redirect_loop, None),
        Hostile("a redirect to itself, 200 wanted", redirect_loop, Reason.STATUS, "302", only_200),
        Hostile("JSON 60,000 deep", zoo.saying(zoo.answer(b"[" * 60_000)), Reason.JSON, keys={"http": "/", "expect": {"json": {"a": 1}}}),
        Hostile("10,000 headers", zoo.saying(OK + b"X: y\r\n" * 10_000 + b"Content-Length: 0\r\n\r\n"), bad, "header lines"),
        Hostile("NULs without end", flooding(then=b"\0" * 4096), bad, "not a valid"),
        Hostile("garbage in the chunks", zoo.saying(CHUNKED + b"5\r\nab\0\xff\r" * 200), bad),
        Hostile("trailers without end", flooding(CHUNKED + b"2\r\nok\r\n0\r\n", then=b"X-Trailer: more\r\n" * 500), bad),
        Hostile("HTTP/2 at once", speaking(SETTINGS * 3), bad, "not a valid"),
        Hostile("TLS where plain HTTP is asked", speaking(ALERT, zoo.closing), bad, "not a valid"),
        Hostile("a handshake that never begins", zoo.silent, timeout, "TLS not agreed", trusting, 1.0),
        Hostile("a handshake by drips", dripping(RECORD + b"\2" * 4096), timeout, "TLS not agreed", trusting, 1.0, or_else=(tls,)),
        Hostile("half a handshake", half_handshake, timeout, "TLS not agreed", trusting, 1.0),
        Hostile("garbage for a handshake", zoo.spontaneous, tls, keys=trusting),
        Hostile("records without end for a handshake", flooding(then=RECORD + b"\2" * 16384), tls, keys=trusting),
        Hostile("a TLS alert", speaking(ALERT), tls, "handshake failure", trusting),
        Hostile("FIN in the handshake", zoo.closing, tls, "closed by the server", trusting),
        Hostile("RST in the handshake", zoo.hurried_reset, reset, "tls", trusting),
        Hostile("plain HTTP where TLS is asked", speaking(zoo.answer(status="400 Bad Request")), tls, keys=trusting),
        Hostile("an expired certificate", zoo.good, Reason.TLS_EXPIRED, keys=trusting, tls="expired"),
        Hostile("a certificate of another name", zoo.good, Reason.TLS_NAME, keys=trusting, tls="other"),
        Hostile("a certificate of a stranger", zoo.good, tls, "tls.ca", trusting, tls="stranger"),
        Hostile("a name that SNI refuses", zoo.good, tls, "unrecognized name", trusting, tls="sni"),
        Hostile("a TLS of yesterday", zoo.good, tls, keys=modern, tls="old"),
        Hostile("a client's certificate wanted", zoo.good, tls, keys=trusting, tls="client", or_else=(reset,)),
        Hostile("a body torn off under TLS", torn, bad, "within the body", trusting, tls="good", or_else=(reset,)),
        Hostile("RST in the body under TLS", reset_after(zoo.answer(b"half")[:-2]), reset, "body", trusting, tls="good"),
        Hostile("10 GB under TLS", ten_gigabytes, None, keys=trusting, tls="good"),
        Hostile("headers without end under TLS", zoo.endless_headers, bad, "header lines", trusting, tls="good"),
        Hostile("silence under TLS", zoo.silent, timeout, "head", trusting, 1.0, "good"),
    ]


def context_of(kind: TlsKind) -> ssl.SSLContext | None:
    """The zoo's side of TLS."""
    if not kind:
        return None
    context = server_context(
        "other.example" if kind == "other" else "shop.example",
        days=-1 if kind == "expired" else 90,
        ca=trustme.CA() if kind == "stranger" else None,
    )
    if kind == "old":
        context.maximum_version = ssl.TLSVersion.TLSv1_2
    if kind == "client":
        context.verify_mode = ssl.CERT_REQUIRED
        authority().configure_trust(context)
    if kind == "sni":
        context.sni_callback = lambda *_: ssl.ALERT_DESCRIPTION_UNRECOGNIZED_NAME
    return context


# ---- the zoo's process ----


def keep_zoo(pipe: Connection, folder: str) -> None:
    """One behaviour at a time, as asked over the pipe by its number: its port; at the next word how many connections there were."""
    all_ = hostiles(ca_file(Path(folder)))
    bomb()  # takes a second, and would be late at its first probe
    pipe.send(len(all_))
    while (number := pipe.recv()) is not None:
        one = all_[number] if number >= 0 else Hostile("good", zoo.good, None)
        with zoo.Server(one.behaviour, host="0.0.0.0", tls=context_of(one.tls)) as server:
            server._listener.listen(4 * AT_ONCE)  # a full queue would be the kernel's behaviour, not this one's
            pipe.send(server.address.port)
            pipe.recv()
        pipe.send(server.accepted)


class Zoo:
    """The other process, from here."""

    def __init__(self, folder: Path) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=keep_zoo, args=(theirs, str(folder)), daemon=True)
        self._process.start()
        self.size = int(self._pipe.recv())

    def open(self, number: int) -> int:
        """The port; -1 asks for good servers."""
        self._pipe.send(number)
        return int(self._pipe.recv())

    def end(self) -> int:
        """How many connections came."""
        self._pipe.send(True)
        return int(self._pipe.recv())

    def close(self) -> None:
        self._pipe.send(None)
        self._process.join(20)
        self._process.kill()


# ---- asking ----


class Turns(asyncio.SelectorEventLoop):
    """A loop that knows its longest turn: what everything else on it has to wait, in processor seconds."""

    longest_s = 0.0

    def _run_once(self) -> None:
        began = time.thread_time()
        super()._run_once()  # type: ignore[misc]
        self.longest_s = max(self.longest_s, time.thread_time() - began)


@dataclass(slots=True)
class Found:
    """What a behaviour has shown. Bytes and seconds."""

    name: str
    late_s: float = 0.0
    memory: int = 0
    lag_s: float = 0.0
    spread_lag_s: float = 0.0
    """The same with the askings spread over a second, as the phases of real targets are."""
    own_lags: int = 0
    faults: list[str] = field(default_factory=list)


async def ask(one: Hostile, port: int, number: int, found: Found, *, over_s: float = 0.0) -> float:
    """The longest turn while so many are asked once, on fresh connections; those that our own lateness spoilt are asked again."""
    spec = ProbeSpec.model_validate(one.keys)
    lag = LagMeter()
    lag.start()
    recorder = Recorder()
    engine = Engine(deliver=recorder, lag=lag)
    engine.specs({spec.key: spec})
    left = [Target(Address(f"127.0.0.{n + 1}", port), spec.key) for n in range(number)]
    loop = asyncio.get_running_loop()
    assert isinstance(loop, Turns)
    loop.longest_s = 0.0
    try:
        for _ in range(TRIES):
            before, starved_s, now = len(recorder.outcomes), waited_for_processor_s(), time.monotonic()
            for n, target in enumerate(left):
                engine.ask(Ask(target, now + over_s * n / number, one.timeout_s, fresh=True))
            await recorder.until_outcomes(before + len(left))
            outcomes = recorder.outcomes[before:]
            starved_s = waited_for_processor_s() - starved_s
            _judge(one, outcomes, lag, starved_s, found)
            left = [outcome.target for outcome in outcomes if outcome.reason is Reason.OWN_LAG]
        return loop.longest_s
    finally:
        await engine.aclose()
        lag.stop()


def waited_for_processor_s() -> float:
    """How long this thread was ready to run and did not, since it began."""
    return int(Path("/proc/thread-self/schedstat").read_text().split()[1]) / 1e9


def _judge(one: Hostile, outcomes: Sequence[Outcome], lag: LagMeter, starved_s: float, found: Found) -> None:
    for outcome in outcomes:
        ours_s = max(starved_s, lag.overlapping(outcome.started, outcome.ended))
        found.late_s = max(found.late_s, outcome.seconds - one.timeout_s - ours_s)
        if outcome.reason is Reason.OWN_LAG:
            found.own_lags += 1
            continue
        result = Result.OK if one.reason is None else Result.FAIL
        is_right = outcome.result is result and (outcome.reason in (one.reason, *one.or_else))
        if not is_right or (outcome.reason is one.reason and one.detail not in outcome.detail):
            found.faults.append(f"{one.name}: {outcome.result} {outcome.reason} {outcome.detail!r}")


def peak_of(asking: Callable[[], None]) -> int:
    """Bytes of resident memory at its peak beyond what there was before."""
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")  # the high-water mark begins anew
    before = _status("VmRSS")
    asking()
    return _status("VmHWM") - before


def _status(name: str) -> int:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(name))
    return int(line.split()[1]) << 10


def run(at_once: int, chosen: Sequence[str] = ()) -> list[Found]:
    """Each behaviour (or those whose names are given) alone and so many at once."""
    with tempfile.TemporaryDirectory() as folder, asyncio.Runner(loop_factory=Turns) as runner:
        place = Path(folder)
        kept = Zoo(place)
        try:
            all_ = hostiles(str(place / "ca.pem"))
            assert len(all_) == kept.size, "both sides speak of the same"
            _warm(kept, runner, at_once)
            return [_meet(kept, runner, at_once, number, one) for number, one in enumerate(all_) if one.name in chosen or not chosen]
        finally:
            kept.close()


def _warm(kept: Zoo, runner: asyncio.Runner, at_once: int) -> None:
    """What is made once is there from now on: code, and the room that so many good ones take."""
    port = kept.open(-1)
    for _ in range(3):
        runner.run(ask(Hostile("good", zoo.good, None), port, at_once, Found("good")))
    kept.end()


def _meet(kept: Zoo, runner: asyncio.Runner, at_once: int, number: int, one: Hostile) -> Found:
    def burst(found: Found) -> None:
        found.lag_s = runner.run(ask(one, port, at_once, found))

    found = Found(one.name)
    port = kept.open(number)
    for _ in range(3):
        runner.run(ask(one, port, 1, found))
    found.memory = peak_of(lambda: burst(found))
    found.spread_lag_s = runner.run(ask(one, port, at_once, found, over_s=SPREAD_S))
    asked, accepted = 3 + 2 * at_once + found.own_lags, kept.end()
    if accepted > asked:
        found.faults.append(f"{one.name}: {accepted} connections for {asked} probes")
    return found


def excess(found: Found) -> list[str]:
    """What is beyond the promised figures."""
    return [
        *([f"{found.name}: ended {found.late_s:.3f} s after its timeout"] if found.late_s > ENDS_WITHIN_S else []),
        *([f"{found.name}: {found.memory / 2**20:.1f} MiB more"] if found.memory > MOST_MEMORY else []),
        *([f"{found.name}: a turn of {1000 * found.spread_lag_s:.0f} ms"] if found.spread_lag_s > MOST_LAG_S else []),
    ]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", help="only these behaviours")
    asked = parser.parse_args()
    os.nice(5)
    started = time.monotonic()
    all_ = run(AT_ONCE, asked.names)
    for each in all_:
        memory, turns = each.memory / 2**20, f"{1000 * each.spread_lag_s:.1f} ms, {1000 * each.lag_s:.1f} ms in one instant"
        print(f"  {each.name}: {1000 * each.late_s:.0f} ms late, {memory:.2f} MiB, a turn of {turns}, {each.own_lags} asked again")
    wrong = [fault for each in all_ for fault in sorted(set(each.faults))]
    beyond = [text for each in all_ for text in excess(each)]
    for text in (*wrong, *beyond):
        print(f"  {text}")
    faults = sum(len(each.faults) for each in all_)
    late, memory = max(e.late_s for e in all_), max(e.memory for e in all_)
    lag, spread, slowest = max(e.lag_s for e in all_), max(e.spread_lag_s for e in all_), max(all_, key=lambda e: e.lag_s).name
    print(
        f"behaviours: {len(all_)} hostile ones, each 3 times alone, {AT_ONCE} in one instant, {AT_ONCE} within a second: {faults} "
        f"wrong reasons; ended {1000 * late:.0f} ms after the timeout at worst; memory +{memory / 2**20:.1f} MiB at worst; longest turn "
        f"of the loop {1000 * spread:.1f} ms of processor time ({1000 * lag:.0f} ms for {AT_ONCE} in one instant: {slowest}); "
        f"{sum(e.own_lags for e in all_)} asked again for our own lateness; {(time.monotonic() - started) / 60:.1f} min"
    )
    return int(bool(wrong or beyond))


if __name__ == "__main__":
    sys.exit(main())

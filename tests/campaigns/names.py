"""A million hostile names and values from outside, and no byte to a balancer beyond the grammar: `python -m tests.campaigns.names`.

What may be said stands here a second time, written down from the balancers' manuals and not from the builders, and byte by byte instead of
by a pattern. Half of what is generated goes through the builder of HAProxy's commands, a tenth through our agent's answers to it, the
rest through the whole plan of Nginx's include files. Some of it also goes to real processes: to HAProxy through the plugin, with every line
written down on the way, and to `nginx -t` and another parser, which must find in the file what they found before and what was asked.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import random
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import crossplane

from lbplugins.api import BalancerError
from lbplugins.haproxy import wire
from lbplugins.haproxy.agent import Agent
from lbplugins.nginx.layout import Upstream
from lbplugins.nginx.picture import Pool
from lbplugins.nginx.plan import Plan, bytes_of, pictured, text_of
from lbplugins.nginx.process import Life, Master
from lbplugins.nginx.servers import IncludeFault, parse
from lbplugins.values import FULL, NONE, OPERATOR, OURS, Address, Change, Ref, Seen, Serve, Setting
from sidecar.demo import stage
from tests.plugins.haproxy.lab import VERSIONS, Fleet, Tap
from tests.plugins.haproxy.test_real import Sidecar

# ---- what is generated ----

PLAIN = "abcxyzABCXYZ0123456789_.:-"
POISON: list[str] = [
    *";\n\r \t\0\\\"'/<%#${}@*?|&!\x01\x7f\x85\xa0éß١／\u2028\u200b\ufeff\U0001f4a3\udc80",
    "\r\n",
    "\\;",
    "<<",
    "${x}",
    "\x1b[2J",
]
COMMANDS: list[str] = [
    *("s1;shutdown sessions server b/s2", "s1\nset server b/s2 state maint", "s1 state maint", "b/s1 weight 0%;", "s1 agent down # "),
    *("ready", "drain", "maint", "stopped", "up 100%", "-1", "#1", "%s", "../../etc/passwd", "s1; set ssl cert x <<\n", "%[env(HOME)]"),
    *("10.0.0.1:80 down; server 6.6.6.6:80", "a; } server { listen 1; root /; ", "127.0.0.1:80;include /etc/shadow", "$(reboot)"),
    *("a'b", 'a"b', "`reboot`", "x" * 128, "x" * 129, "x" * 5000),
]


def name(chance: random.Random) -> str:
    """Good ones too, or refusing everything would pass."""
    text = "".join(chance.choices(PLAIN, k=chance.choice((1, 2, 5, 9, 20))))
    match chance.randrange(8):
        case 0 | 1 | 2:
            return text
        case 3:
            at = chance.randrange(len(text) + 1)
            return text[:at] + chance.choice(POISON) + text[at:]
        case 4:
            return text + chance.choice(POISON)
        case 5:
            return chance.choice(COMMANDS)
        case 6:
            return text[:5] + chance.choice(COMMANDS)
        case _:
            return "".join(chr(chance.choice((chance.randrange(128), chance.randrange(0x3000)))) for _ in range(chance.randrange(40)))


def weight(chance: random.Random) -> Any:
    """What a weight must not be, as well."""
    strange = (None, 10**30, True, 1.5, float("nan"), float("inf"), "1", "1;set server b/s1 state maint", b"1")
    return chance.choice((chance.randrange(257), chance.randint(-3, 300), *strange))


# ---- HAProxy's grammar ----

LETTERS = frozenset(b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ")
DIGITS = frozenset(b"0123456789")
IN_NAMES = LETTERS | DIGITS | frozenset(b"_.:-")
ENDINGS = {(b"state", word) for word in (b"ready", b"drain", b"maint")} | {(a, w) for a in (b"health", b"agent") for w in (b"up", b"down")}
FIXED = {b"show info", b"show cli level", b"show servers state", b"show stat -1 6 -1", b"show proc"}


def is_name(word: bytes) -> bool:
    return 1 <= len(word) <= 128 and all(byte in IN_NAMES for byte in word)


def is_server(word: bytes) -> bool:
    parts = word.split(b"/")
    return len(parts) == 2 and is_name(parts[0]) and is_name(parts[1])


def is_weight(word: bytes) -> bool:
    return 1 <= len(word) <= 3 and all(byte in DIGITS for byte in word) and int(word) <= 256


def is_command(text: bytes) -> bool:
    """One command that we may give HAProxy."""
    if text in FIXED:
        return True
    words = text.split(b" ")
    match words:
        case [b"set", b"server", server, b"weight", number]:
            return is_server(server) and is_weight(number)
        case [b"set", b"server", server, *ending]:
            return is_server(server) and tuple(ending) in ENDINGS
        case [b"enable" | b"disable", b"health", server]:
            return is_server(server)
        case [b"shutdown", b"sessions", b"server", server]:
            return is_server(server)
        case [b"get", b"weight", server]:
            return is_server(server)
        case [b"show", b"servers", b"state", pool]:
            return is_name(pool)
        case [b"show", b"stat", pool, b"6", b"-1"]:
            return is_name(pool) and pool[0] in LETTERS | frozenset(b"_.:")
    return False


def is_line(line: bytes, commands: int) -> bool:
    """Exactly so many commands, and the one line feed at the end."""
    body, feed, rest = line.partition(b"\n")
    parts = body.split(b";")
    return feed == b"\n" and rest == b"" and len(parts) == commands and all(is_command(part) for part in parts)


def is_answer(text: bytes) -> bool:
    """One answer of our agent: `up`, `down` with a reason of printable characters behind a `#`, or nothing said."""
    if text in (b"\n", b"up\n"):
        return True
    body, feed, rest = text.partition(b"\n")
    words, mark, reason = body.partition(b"#")
    return (
        (feed, rest, words, mark) == (b"\n", b"", b"down ", b"#")
        and reason.startswith(b"lb-sidecar")
        and len(reason) < 120
        and all(32 <= byte < 127 and byte not in b"#;\\\"'<>$`{}" for byte in reason)
    )


# ---- the grammar of an include: the operator's text, and what may be added to it ----

HEADER_START, HEADER_END = b"# lb-sidecar sum=", b" written by lb-sidecar; after an edit by hand run: lb-sidecar adopt\n"
MARK = b"  # lb-sidecar "
IN_SUM = DIGITS | frozenset(b"abcdef")


def beyond(operators: bytes, written: bytes) -> str:
    """'' if the text is the operator's with nothing but our marks, `down`s and weights; else what stands there beyond."""
    if written == operators:
        return ""
    head, body = written[: len(HEADER_START) + 64 + len(HEADER_END)], written[len(HEADER_START) + 64 + len(HEADER_END) :]
    sum_ = head[len(HEADER_START) :][:64]
    if not (head.startswith(HEADER_START) and head.endswith(HEADER_END) and len(sum_) == 64 and all(byte in IN_SUM for byte in sum_)):
        return f"a header {head!r}"
    at = there = 0
    while there < len(body) or at < len(operators):
        if at < len(operators) and there < len(body) and operators[at] == body[there]:
            at, there = at + 1, there + 1
        elif (skip := _added(operators, at, body, there)) is not None:
            at, there = skip
        else:
            return f"{body[there : there + 60]!r} in place of {operators[at : at + 60]!r}"
    return ""


def _added(operators: bytes, at: int, body: bytes, there: int) -> tuple[int, int] | None:
    """Where both go on behind what we may add or change here; None = nothing of that kind stands here."""
    if operators[at : at + 1] == b";":
        for word in (b" down", b" weight="):
            if body.startswith(word, there):
                end = there + len(word)
                return (at, _digits_end(body, end) if word.endswith(b"=") else end)
    if operators[at : at + 1] in (b"\n", b"\r", b"") and body.startswith(MARK, there):
        end = there + len(MARK)
        while end < len(body) and body[end] not in b"\r\n":
            end += 1
        return (at, end) if are_marks(body[there + len(MARK) : end]) else None
    start, other = at, there
    while start > 0 and operators[start - 1] in DIGITS:
        start, other = start - 1, other - 1
    if operators[max(0, start - 8) : start].endswith(b"weight=") and body[max(0, other - 7) : other] == b"weight=":
        ends = _digits_end(operators, start), _digits_end(body, other)
        return ends if ends[0] > start and ends[1] > other and ends != (at, there) else None
    return None


def _digits_end(text: bytes, at: int) -> int:
    while at < len(text) and text[at] in DIGITS:
        at += 1
    return at


def are_marks(text: bytes) -> bool:
    """The words behind our comment sign: each at most once, in their order."""
    order = [b"ejected", b"maintenance", b"held", b"nominal", b"cut"]
    found = []
    for word in text.split(b" "):
        key, equals, value = word.partition(b"=")
        is_number = 1 <= len(value) <= 7 and all(byte in DIGITS for byte in value)
        if (
            key not in order
            or bool(equals) != (key in order[3:])
            or not (not equals or is_number or (key, value) == (b"nominal", b"default"))
        ):
            return False
        found.append(order.index(key))
    return found == sorted(set(found))


# ---- an operator's include, and what is asked of it ----


def include(chance: random.Random, *, is_plausible: bool = False) -> str:
    """`is_plausible`: nginx itself would take it."""
    addresses = ["127.0.0.1:8001", "127.0.0.1:8002", "10.0.0.3", "[::1]:80", "127.0.0.5:65535"]
    strange = ["unix:/run/x.sock", '"quoted:80"', "'q:80'", "a\\;b:80", "$host:80", "shop.example", "a:0", "x{y:1", "1.2.3:4", "é:80"]
    options = ["", " max_fails=0", " weight=3", " weight=100", " fail_timeout=5s", " backup", " down", "\t max_conns=7", "\n  weight=7"]
    odd = [
        ' "weight=5"',
        " weight=0",
        " weight=1000000",
        " weight=4 weight=5",
        " weight=08",
        " drain",
        " down down",
        " #x;\n",
        " 'down'",
        " resolve",
    ]
    tails = [
        "\n",
        "\r\n",
        "  # the old one\n",
        "  # lb-sidecar ejected\n",
        " # x;y{\n",
        "\n\n",
        "  # lb-sidecar cut=50\n",
        "# lb-sidecar \n",
        "",
    ]
    others = [
        "# rack 4\n",
        "keepalive 16;\n",
        "ip_hash;\n",
        "least_conn;\n",
        "hash $x consistent;\n",
        "\t\n",
        "zone s 64k;\n",
        "include x;\n",
        "{\n",
    ]
    servers = chance.sample(addresses, chance.randint(2, 4))
    parts = []
    for number, server in enumerate(servers):
        is_odd = not is_plausible and chance.random() < 0.25
        option = chance.choice(options[:-1] if number else options[:5]) + (chance.choice(odd) if is_odd else "")
        address = chance.choice(strange) if not is_plausible and chance.random() < 0.15 else server
        tail = chance.choice(tails[:3] if is_plausible else tails)
        parts.append(f"{chance.choice(('', chr(9), '  '))}server {address}{option};{tail}")
        if not is_plausible and chance.random() < 0.2:
            parts.append(chance.choice(others))
    if not is_plausible and chance.random() < 0.05:
        parts.insert(0, name(chance) + "\n")
    return "".join(parts)


class Scene:
    """One upstream with this include, as nginx runs it."""

    MASTER = Master(Life(1, 1), 0, "nginx: master", "/", frozenset(), 0)

    def __init__(self, operators: str) -> None:
        self.operators = bytes_of(operators)
        self.pool = self._pool(self.operators)

    @staticmethod
    def _pool(data: bytes) -> Pool:
        """IncludeFault when no plugin would touch it."""
        found = parse(text_of(data))
        return Pool(Upstream("shop", Path("/nowhere/shop.conf"), False, (), "nginx.conf line 1"), data, found, found, True)

    def change(self, chance: random.Random) -> tuple[Change, bytes]:
        """One change with names and values from outside, and the file that follows; the scene goes on with it."""
        seen = pictured(self.pool, self.MASTER)
        known = chance.choice(sorted(seen)) if seen and chance.random() < 0.8 else Ref(name(chance), name(chance))
        ref = known if chance.random() < 0.95 else Ref(known.pool, known.server + chance.choice(POISON))
        want = Setting(chance.choice((FULL, NONE, Serve.DRAIN)), chance.choice((100, 100, 50, 1, 33, 0, -5, 101, 10**9)))
        expect = seen.get(ref, Seen(address=Address(name(chance), 1)))
        change = Change(ref, want, expect, chance.choice((OURS, OURS, OPERATOR)), note=name(chance), why=name(chance))
        plan = Plan({"shop": self.pool}, self.MASTER, Path("/nowhere"))
        plan.add(change)
        data = plan.texts().get("shop", self.pool.data)
        self.pool = self._pool(data)
        return change, data


# ---- the runs ----


def haproxy(seed: int, values: int) -> tuple[Counter[str], list[str]]:
    """So many names and weights to the builder, joined into lines as they go on the wire."""
    chance, tally, faults = random.Random(seed), Counter[str](), []
    line: list[wire.Command] = []
    for _ in range(values):
        ref = Ref(name(chance), name(chance))
        builders: tuple[Callable[[], wire.Command], ...] = (
            lambda: wire.show_state(ref.pool),  # noqa: B023
            lambda: wire.show_stat(ref.server),  # noqa: B023
            lambda: wire.order(verb, ref, {ref}, weight(chance) if verb is wire.Verb.SET_WEIGHT else None),  # noqa: B023
        )
        verb = chance.choice(list(wire.Verb))
        try:
            line.append(chance.choice((*builders, builders[2], builders[2]))())
        except (wire.Unsayable, TypeError, ValueError):
            tally["refused"] += 1
            continue
        tally["said"] += 1
        if len(line) == 3:
            sent = ";".join(command.text for command in line).encode("ascii") + b"\n"
            if not is_line(sent, 3):
                faults.append(f"HAProxy, seed {seed}: {sent!r}")
            line = []
    return tally, faults


def agent(seed: int, values: int) -> tuple[Counter[str], list[str]]:
    """So many questions and reasons to our agent."""

    async def ask() -> tuple[Counter[str], list[str]]:
        chance, tally, faults = random.Random(seed), Counter[str](), []
        for _ in range(values):
            asked, ref = Agent(Address("127.0.0.1", 1)), Ref(name(chance), name(chance))
            asked.say(ref, chance.choice((FULL, NONE)), chance.choice((name(chance), name(chance) + name(chance))))
            said = asked.answer(f"{ref.pool}/{ref.server}".encode("utf-8", "surrogatepass"))
            tally["refused" if said == b"\n" else "said"] += 1
            if not is_answer(said):
                faults.append(f"agent, seed {seed}: {said!r}")
        return tally, faults

    return asyncio.run(ask())


def nginx(seed: int, values: int) -> tuple[Counter[str], list[str]]:
    """So many changes to so many includes, up to four in a row on each."""
    chance, tally, faults = random.Random(seed), Counter[str](), []
    done = 0
    while done < values:
        try:
            scene = Scene(include(chance))
        except IncludeFault:
            tally["refused"] += 1
            done += 1
            continue
        for _ in range(chance.randint(1, 4)):
            before = scene.pool.data
            _, data = scene.change(chance)
            done += 1
            tally["refused" if data == before else "said"] += 1
            if what := beyond(scene.operators, data):
                faults.append(f"Nginx, seed {seed}: {what} in\n{data!r}")
    return tally, faults


def real_nginx(seed: int, files: int) -> tuple[Counter[str], list[str]]:
    """Before and after to each nginx's own test and to crossplane: both take it, and see no more and no other servers than before."""
    chance, tally, faults = random.Random(seed), Counter[str](), []
    binaries = list(stage.nginx_binaries())
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(files):
            scene = Scene(include(chance, is_plausible=True))
            before = _servers(Path(folder), scene.operators)
            changes = [scene.change(chance)[0] for _ in range(3)]
            data = scene.pool.data
            if _servers(Path(folder), data) != before:
                faults.append(f"Nginx, seed {seed}: crossplane finds other servers after {changes} in\n{data!r}")
            for binary in binaries:
                if _test(binary, Path(folder), scene.operators):
                    continue
                tally[f"files to nginx {binary.version} -t"] += 1
                if told := _test(binary, Path(folder), data):
                    faults.append(f"Nginx {binary.version}, seed {seed}: {told} after {changes} in\n{data!r}")
    return tally, faults


def _servers(folder: Path, data: bytes) -> list[object]:
    """All directives by another parser, but for `down` and weights."""
    path = folder / "shop.conf"
    path.write_bytes(data)
    found = crossplane.parse(str(path), single=True, check_ctx=False, check_args=False)
    assert found["status"] == "ok", found
    return [
        (each["directive"], [arg for arg in each["args"] if arg != "down" and not arg.startswith("weight=")])
        for each in found["config"][0]["parsed"]
        if each["directive"] != "#"
    ]


def _test(binary: stage.Binary, folder: Path, data: bytes) -> str:
    """'' or what this nginx has against it."""
    (folder / "shop.conf").write_bytes(data)
    upstream = f"upstream shop {{ zone shop 64k; include {folder}/shop.conf; }}"
    (folder / "nginx.conf").write_text(f"pid {folder}/pid; events {{}} http {{ access_log off; {upstream} }}\n")
    argv = [binary.path, "-t", "-q", "-p", f"{folder}/", "-c", f"{folder}/nginx.conf", "-e", f"{folder}/error.log"]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=60)
    return "" if done.returncode == 0 else done.stderr


async def real_haproxy(version: str, seed: int, values: int) -> tuple[Counter[str], list[str]]:
    """Through the plugin to a real HAProxy; every line on the way is read."""
    chance, tally = random.Random(seed), Counter[str]()
    fleet = Fleet(version)
    tap = Tap(str(fleet.box.dir / "names.sock"), fleet.box.socket)
    ours = Sidecar(tap.path)
    try:
        for n in range(values):
            known = chance.choice(fleet.refs("e"))
            refs = [known, Ref(known.pool, known.server + chance.choice(POISON)), Ref(name(chance), name(chance)), Ref("e", name(chance))]
            picture = await ours.plugin.observe(frozenset({"e", name(chance)}), {ref: name(chance) for ref in refs})
            want = Setting(chance.choice((FULL, NONE)), chance.choice((100, 50)))
            changes = [
                Change(ref, want, picture.get(ref, Seen()), chance.choice((OURS, OPERATOR)), note=name(chance), why=name(chance))
                for ref in refs
            ]
            try:
                tally["refused"] += len(await ours.plugin.apply(changes))
            except BalancerError:
                tally["refused"] += len(changes)
            if n % 20 == 0:
                fleet.reset("e")
        lines = [f"{line}\n".encode() for line in tap.lines]
        tally["lines to HAProxy"] += len(lines)
        return tally, [f"HAProxy {version}: {line!r}" for line in lines if not is_line(line, line.count(b";") + 1)]
    finally:
        await ours.plugin.aclose()
        tap.close()
        fleet.close()


CHUNK = 20_000


def run(values: int, real: int, processes: int, seed: int) -> tuple[Counter[str], list[str]]:
    """`values` generated in all, and `real` of each kind through the real processes."""
    tally, faults = Counter[str](), list[str]()
    kinds = [haproxy] * 5 + [agent] + [nginx] * 4
    with ProcessPoolExecutor(processes) as pool:
        jobs = [pool.submit(kinds[n % len(kinds)], seed + n, CHUNK) for n in range(-(-values // CHUNK))]
        for job in jobs:
            _add(tally, faults, job.result())
    _add(tally, faults, real_nginx(seed, real))
    for version in VERSIONS:
        _add(tally, faults, asyncio.run(real_haproxy(version, seed, real)))
    return tally, faults


def _add(tally: Counter[str], faults: list[str], found: tuple[Counter[str], Sequence[str]]) -> None:
    tally.update(found[0])
    faults.extend(found[1])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--values", type=int, default=1_000_000)
    parser.add_argument("--real", type=int, default=500, help="through the real processes, of each kind")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--seed", type=int, default=1)
    asked = parser.parse_args()
    os.nice(5)
    started = time.monotonic()
    tally, faults = run(asked.values, asked.real, asked.processes, asked.seed)
    for fault in faults[:50]:
        print(f"  {fault}")
    extra = ", ".join(f"{n} {what}" for what, n in sorted(tally.items()) if what not in ("said", "refused"))
    print(
        f"names: {tally['said'] + tally['refused']} values from outside, {tally['said']} said and {tally['refused']} refused, {extra}: "
        f"{len(faults)} beyond the grammar; {(time.monotonic() - started) / 60:.1f} min"
    )
    return int(bool(faults))


if __name__ == "__main__":
    sys.exit(main())

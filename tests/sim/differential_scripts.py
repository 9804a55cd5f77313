"""Random command scripts for one HAProxy backend: what our plugin says, what operators say, and what nobody should. Pure, seeded."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random

PORT = 21001
"""Where the servers of these configurations are said to listen; nobody does."""

SHAPES: dict[str, Sequence[str]] = {
    "plain": ("server s1 127.0.0.1:21001 weight 100", "server s2 127.0.0.1:21001 weight 10", "server s3 127.0.0.1:21001"),
    "check": (
        "server s1 127.0.0.1:21001 weight 100 check rise 2 fall 3",
        "server s2 127.0.0.1:21001 weight 3 check rise 1 fall 1",
        "server s3 127.0.0.1:21001 check disabled",
    ),
    "agent": (
        "server s1 127.0.0.1:21001 weight 100 agent-check agent-port 21002",
        "server s2 127.0.0.1:21001 weight 10 agent-check agent-port 21002 check rise 1 fall 2",
        "server s3 127.0.0.1:21001 agent-check agent-port 21002 disabled weight 0",
    ),
    "static": (
        "balance static-rr",
        "server s1 127.0.0.1:21001 weight 100",
        "server s2 127.0.0.1:21001 weight 10 check",
        "server s3 127.0.0.1:21001 backup",
    ),
    "track": (
        "balance leastconn",
        "server s1 127.0.0.1:21001 weight 100 check",
        "server s2 127.0.0.1:21001 weight 20 track s1",
        "server s3 127.0.0.1:21001 track s2 backup",
    ),
    "hash": (
        "balance uri",
        "hash-type consistent",
        "server s1 127.0.0.1:21001 weight 7",
        "server s2 127.0.0.1:21001 weight 9 check",
        "server s3 127.0.0.1:21001 agent-check agent-port 21002 check disabled",
    ),
    "mixed": (
        "balance random",
        "mode tcp",
        "server s1 127.0.0.1:21001 weight 256 check agent-check agent-port 21002",
        "server s2 127.0.0.1:21001 weight 0 check backup",
        "server s3 127.0.0.1:21001 id 77 maxconn 9",
    ),
    "source": (
        "balance source",
        "server s1 127.0.0.1:21001 weight 5 check",
        "server s2 127.0.0.1:21001",
        "server s3 127.0.0.1:21001 weight 0",
    ),
}
NAMES = ("s1", "s2", "s3")
ADDED = ("n1", "n2")

STATES = ("state ready", "state drain", "state maint")
AXES = ("health up", "health down", "health stopping", "agent up", "agent down")
ODD = ("state bogus", "health bogus", "agent bogus", "state", "health", "agent", "weight", "bogus", "", "fqdn x", "ssl on", "addr")
WEIGHTS = ("0", "1", "50", "256", "257", "-1", "0%", "1%", "33%", "50%", "100%", "150%", "99999%", "x", "3x", "-3%", " 20")
PLACES = (
    "addr 127.0.0.2", "addr 127.0.0.2 port 21007", "addr 127.0.0.1 port 21001", "addr 999.1.1.1", "addr ::1 port 80",
    "addr 127.0.0.3 port x",
    "addr 127.0.0.1 port +7", "addr 127.0.0.1 prt 9", "agent-addr 127.0.0.2", "agent-addr 127.0.0.2 port 21003",
    "agent-addr nonsense.invalid",
    "agent-port 21004", "agent-port x", "agent-port 99999", "check-port 21005", "check-port", "check-addr 127.0.0.2 port 70000",
    "check-addr 127.0.0.2 port 21006", "agent-send hello", "agent-send",
)  # fmt: skip
LOOKS = (
    "show cli level", "show backend", "show servers conn {pool}", "show servers state nobody", "show stat nobody 4 -1", "get weight {ref}",
    "show stat {pool} 2 -1", "show stat -1 6 -1", "show servers state", "show stat {pool} x -1", "operator;set server {ref} state maint",
    "user;show stat {pool} 6 -1",
)  # fmt: skip
WRONG = (
    "get weight {pool}",
    "set server {pool}/s9 state maint",
    "set server nobody/s1 state maint",
    "set server",
    "frobnicate {ref}",
    "set",
)
SWITCHES = (
    "enable health",
    "disable health",
    "enable agent",
    "disable agent",
    "enable server",
    "disable server",
    "shutdown sessions server",
)
FIRST_OUT = "disable health {ref};set server {ref} health down"
"""As our plugin says it where HAProxy checks by itself."""

CHECKED = " check inter 11h agent-check agent-inter 11h agent-port 21002"


def script(random: Random, pool: str, lines: int) -> list[str]:
    """So many lines for this backend, each of one command or a few joined. Every other script has to do with one server only."""
    names = random.choice((NAMES, NAMES, NAMES, *((name,) for name in NAMES)))
    return [";".join(_command(random, pool, names) for _ in range(random.choice((1, 1, 1, 2, 3)))) for _ in range(random.randint(1, lines))]


def _command(random: Random, pool: str, names: Sequence[str]) -> str:
    ref = f"{pool}/{random.choice(names if random.random() < 0.9 else ADDED)}"
    dice = random.random()
    if dice < 0.30:
        return f"set server {ref} {random.choice(STATES)}"
    if dice < 0.50:
        return f"set server {ref} {random.choice(AXES)}"
    if dice < 0.62:
        return f"{random.choice(SWITCHES)} {ref}"
    if dice < 0.74:
        verb = random.choice(("set server {} weight {}", "set server {} weight {}", "set weight {} {}"))
        return verb.format(ref, random.choice(WEIGHTS))
    if dice < 0.79:
        return FIRST_OUT.format(ref=ref)
    if dice < 0.85:
        return f"set server {ref} {random.choice(PLACES)}"
    if dice < 0.88:
        return f"set maxconn server {ref} {random.choice(('0', '5', 'x', '7y', ''))}"
    if dice < 0.91:
        return f"set server {ref} {random.choice(ODD)}"
    if dice < 0.94:
        return random.choice(LOOKS + WRONG).format(pool=pool, ref=ref)
    return _membership(random, pool)


def _membership(random: Random, pool: str) -> str:
    """Servers that come and go. One of the configuration must stay, so it is made ready before `del` is tried on it."""
    name = random.choice(ADDED)
    added = f"add server {pool}/{name} 127.0.0.1:21001"
    return random.choice(
        (
            f"{added} weight {random.randint(0, 256)}", f"{added}{CHECKED}", f"{added} bogus", f"{added} check inter 11h rise 1 backup",
            f"del server {pool}/{name}", f"set server {pool}/{name} state maint;del server {pool}/{name}", "del server",
            f"add server {pool}",
            f"set server {pool}/s1 state ready;del server {pool}/s1", f"add server {pool}/s1 127.0.0.1:1", f"del server {pool}/zz",
            f"enable health {pool}/{name};enable server {pool}/{name}",
        )
    )  # fmt: skip


def reset(pool: str) -> str:
    """One line after which a backend is as every script expects it, whatever was done before."""
    commands = [f"set server {pool}/{name} state maint;del server {pool}/{name}" for name in ADDED]
    for name in NAMES:
        ref = f"{pool}/{name}"
        commands += [
            f"enable health {ref};enable agent {ref};set maxconn server {ref} 0",
            f"set server {ref} addr 127.0.0.1 port {PORT};set server {ref} check-addr 127.0.0.1 port {PORT}",
            f"set server {ref} agent-addr 127.0.0.1 port 21002;set server {ref} agent-send hello",
        ]
    return ";".join([*commands, ready(pool)])


def ready(pool: str) -> str:
    """One line after which all servers are up and as heavy as at first, their checks on."""
    # Twice, for those that track another: they come up only when it is up.
    return ";".join(
        f"enable health {ref};enable agent {ref};set server {ref} state maint;set server {ref} agent up;set server {ref} state ready;"
        f"set server {ref} health up;set server {ref} agent up;set server {ref} weight 100%"
        for ref in (f"{pool}/{name}" for name in (*NAMES, *NAMES))
    )


def plain_line(random: Random, pool: str) -> str:
    """A line that moves the axes and weights of the servers and nothing else."""
    return ";".join(_plain_command(random, pool) for _ in range(random.choice((1, 1, 2, 3))))


def _plain_command(random: Random, pool: str) -> str:
    ref = f"{pool}/{random.choice(NAMES)}"
    return random.choice(
        (
            f"set server {ref} {random.choice(STATES)}",
            f"set server {ref} {random.choice(AXES[:3] if random.random() < 0.5 else AXES)}",
            f"{random.choice(SWITCHES[:4])} {ref}",
            f"set server {ref} weight {random.choice(WEIGHTS[:4])}",
            FIRST_OUT.format(ref=ref),
        )
    )


__all__ = ["SHAPES", "plain_line", "ready", "reset", "script"]

"""What a haproxy.cfg says that matters to us: the admin socket, backends with servers, and how HAProxy checks them.

Reads as little as it needs and says what it did not understand; it never writes to the file.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sidecar.config.draft import Draft, DraftError, ServiceDraft, checked_policy, checked_probe, service_name
from sidecar.config.models import POOL_NAME
from sidecar.net.units import duration_text

MAX_FILE_BYTES = 4 << 20
DEFAULT_SOCKET = "/run/haproxy/admin.sock"

_PROXIES = ("defaults", "frontend", "backend", "listen")
_SECTIONS = frozenset(
    (*_PROXIES, "global", "peers", "userlist", "resolvers", "mailers", "cache", "program", "http-errors", "ring", "fcgi-app",
     "log-forward", "crt-store", "traces", "log-profile", "acme", "crt-list")
)  # fmt: skip
_OTHER_CHECKS = (
    "tcp-check", "mysql-check", "pgsql-check", "redis-check", "ldap-check", "smtpchk", "external-check", "spop-check", "ssl-hello-chk"
)  # fmt: skip
_STATIC_ALGORITHMS = frozenset({"static-rr", "source", "uri", "url_param", "hdr", "rdp-cookie", "hash"})
_SECONDS = {"us": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}

Words = tuple[str, ...]


@dataclass(frozen=True)
class Line:
    """One line's words and its number."""

    number: int
    words: Words


@dataclass
class Section:
    """One block: `backend shop`. Lines of the `defaults` that apply to it come first."""

    kind: str
    name: str
    number: int
    lines: list[Line] = field(default_factory=list)

    def all(self, *start: str) -> list[Line]:
        """The lines that begin with these words."""
        return [line for line in self.lines if line.words[: len(start)] == start]

    def last(self, *start: str) -> Line | None:
        """The line that holds: a later one replaces an earlier."""
        found = self.all(*start)
        return found[-1] if found else None


@dataclass(frozen=True)
class Server:
    """One `server` line with the `default-server` words before it. `options`: word -> its value, "" for flags."""

    name: str
    address: str
    options: Mapping[str, str]
    number: int


def draft_haproxy(path: Path) -> Draft:
    """A draft from a haproxy.cfg; DraftError if it cannot be read or has no servers."""
    sections, remarks = parse(_text(path))
    socket, socket_remarks = admin_socket(sections)
    services: list[ServiceDraft] = []
    checked: list[str] = []
    for section in sections:
        if section.kind not in ("backend", "listen"):
            continue
        servers = list(servers_of(section))
        if section.name in {known.pool for known in services}:
            remarks.append(f"{section.kind} {section.name}: the name stands twice; line {section.number} was left out: rename one")
        elif not servers:
            remarks += _without_servers(section)
        elif not re.fullmatch(POOL_NAME, section.name):
            remarks.append(
                f"{section.kind} {section.name!r} in line {section.number}: a name that cannot be driven; rename it to include it"
            )
        elif not section.all("server-template") and all(_is_nowhere(server) for server in servers):
            remarks.append(
                f"{section.kind} {section.name}: left out, for none of its servers has an address that could be asked (unix sockets)"
            )
        else:
            service, more = _service(section, servers, {known.name for known in services}, path.name)
            services.append(service)
            remarks += more
            checked += [section.name] if any({"check"} == {"check", "agent-check"} & set(server.options) for server in servers) else []
    if not services:
        raise DraftError(f"{path}: no backend or listen section with `server` lines; name the file that holds them")
    if checked:
        remarks.append(_own_checks(checked))
    hints = ["traffic: {syslog: 127.0.0.1:8651}   # real requests: add `log 127.0.0.1:8651 local0` to global, and `option httplog`"]
    return Draft(str(path), "edge", {"plugin": "haproxy", "socket": socket}, services, hints, [*socket_remarks, *remarks])


def _own_checks(names: Sequence[str]) -> str:
    """How to keep HAProxy's own checks on: without an agent line, holding a server out means switching its check off."""
    return (
        f"HAProxy checks the servers of {', '.join(names[:20])} itself; while the sidecar holds a server out, that check is off for it. "
        "To keep both, let the sidecar answer as agent: add to each server "
        'agent-check agent-inter 1s agent-addr 127.0.0.1 agent-port 7001 agent-send "BACKEND/SERVER\\n", and `agent: 127.0.0.1:7001` '
        "to the balancer"
    )


def _text(path: Path) -> str:
    try:
        with path.open("rb") as stream:
            raw = stream.read(MAX_FILE_BYTES + 1)
    except FileNotFoundError as error:
        raise DraftError(f"{path}: {error.strerror}; name the haproxy.cfg that HAProxy runs with") from error
    except OSError as error:
        raise DraftError(f"{path}: {error.strerror}; run init as a user who may read it") from error
    if len(raw) > MAX_FILE_BYTES:
        raise DraftError(f"{path}: bigger than {MAX_FILE_BYTES >> 20} MiB: that is no haproxy.cfg")
    # HAProxy takes any bytes; what is not UTF-8 can only stand in comments and texts that we do not need.
    return raw.decode("utf-8", "replace")


# ---- reading ----


def parse(text: str) -> tuple[list[Section], list[str]]:
    """All sections, each proxy with its defaults' lines first; and remarks on what cannot be known from the file alone."""
    sections: list[Section] = []
    defaults: dict[str, Section] = {}
    current_defaults: Section | None = None
    remarks: list[str] = []
    for number, written in enumerate(text.splitlines(), 1):
        words = split(written)
        if not words:
            continue
        if words[0].startswith("."):
            remarks += [f"line {number}: `{words[0]}` is not evaluated: all branches were read"] if words[0] == ".if" else []
        elif words[0] in _SECTIONS:
            section = Section(words[0], words[1] if len(words) > 1 else "", number)
            if section.kind == "defaults":
                current_defaults = defaults[section.name] = section
            elif section.kind in _PROXIES and (base := _base(words, defaults, current_defaults)) is not None:
                section.lines += base.lines
            sections.append(section)
        elif sections:
            sections[-1].lines.append(Line(number, words))
    return sections, remarks


def _base(words: Words, defaults: Mapping[str, Section], current: Section | None) -> Section | None:
    """The defaults that a proxy takes: those it names by `from`, else the last before it."""
    return defaults.get(words[3]) if len(words) > 3 and words[2] == "from" else current


def split(text: str) -> Words:
    r"""The words of a line as HAProxy reads them: quotes, backslashes, `#` comments.

    >>> split(r'http-check send hdr Host "a b" uri /x\ y # why')
    ('http-check', 'send', 'hdr', 'Host', 'a b', 'uri', '/x y')
    """
    words: list[str] = []
    word: str | None = None
    quote = ""
    chars = iter(text)
    for char in chars:
        if char == "\\" and quote != "'":
            word = (word or "") + _escaped(next(chars, ""))
        elif quote:
            quote, word = ("", word) if char == quote else (quote, (word or "") + char)
        elif char in "\"'":
            quote, word = char, word or ""
        elif char == "#":
            break
        elif char.isspace():
            words += [word] if word is not None else []
            word = None
        else:
            word = (word or "") + char
    return tuple(words if word is None else [*words, word])


def _escaped(char: str) -> str:
    return {"n": "\n", "r": "\r", "t": "\t"}.get(char, char)


def admin_socket(sections: Sequence[Section]) -> tuple[str, list[str]]:
    """The path of the stats socket with admin rights, and what to add to the file if there is none."""
    others: list[str] = []
    for line in (line for section in sections if section.kind == "global" for line in section.all("stats", "socket")):
        path = line.words[2].removeprefix("unix@") if len(line.words) > 2 else ""
        options = dict(zip(line.words[3:], line.words[4:], strict=False))
        if not path.startswith("/") or len(path.encode()) > 107 or not path.isprintable():
            others.append(f"line {line.number}: `stats socket {path[:60]}` is no unix socket of this machine")
        elif options.get("level") != "admin":
            others.append(f"line {line.number}: `stats socket {path}` lacks `level admin`, without which nothing can be changed")
        else:
            return path, []
    add = f"add to `global`: stats socket {DEFAULT_SOCKET} mode 660 level admin expose-fd listeners"
    return DEFAULT_SOCKET, [*others, f"no admin socket found; {add}; then reload, and put the sidecar's user into the socket's group"]


def servers_of(section: Section) -> Iterator[Server]:
    """The servers of a proxy, with what `default-server` lines before them say."""
    defaults: dict[str, str] = {}
    for line in section.lines:
        if line.words[0] == "default-server":
            defaults = _server_options(line.words[1:], defaults)
        elif line.words[0] == "server" and len(line.words) > 2:
            yield Server(line.words[1], line.words[2], _server_options(line.words[3:], defaults), line.number)


_FLAGS = frozenset(
    {"check", "ssl", "backup", "disabled", "agent-check", "check-ssl", "check-send-proxy", "send-proxy", "send-proxy-v2"}
)  # fmt: skip


def _server_options(words: Words, defaults: Mapping[str, str]) -> dict[str, str]:
    options = dict(defaults)
    rest = iter(words)
    for word in rest:
        if word in _FLAGS:
            options[word] = ""
        elif word.startswith("no-") and word[3:] in _FLAGS:
            options.pop(word[3:], None)
        elif word == "enabled":
            options.pop("disabled", None)
        elif word in _VALUED:
            options[word] = next(rest, "")
    return options


_VALUED = frozenset(
    {"port", "inter", "fastinter", "downinter", "fall", "rise", "weight", "verify", "ca-file", "sni", "check-sni",
     "addr", "cookie", "track", "slowstart", "on-marked-down", "agent-port", "agent-addr", "agent-send",
     "agent-inter", "maxconn", "resolvers", "crt", "error-limit", "observe", "on-error", "check-proto", "proto",
     "id", "source", "init-addr", "minconn", "pool-purge-delay", "alpn", "check-alpn"}
)  # fmt: skip


# ---- one backend ----


def _is_nowhere(server: Server) -> bool:
    return server.address.startswith(("/", "unix@", "abns@", "fd@", "sockpair@")) or "$" in server.address


def _without_servers(section: Section) -> list[str]:
    if section.all("server-template"):
        template = section.all("server-template")[0]
        message = "servers come from `server-template`: add the service by hand, its servers are then taken from HAProxy"
        return [f"{section.kind} {section.name} (line {template.number}): {message}"]
    return []


def _service(section: Section, servers: Sequence[Server], taken: set[str], file: str) -> tuple[ServiceDraft, list[str]]:
    where = f"{section.kind} {section.name}"
    found, remarks = _probe(section, servers, where)
    probe, more = checked_probe(found, where)
    policy, worse = checked_policy(_policy(servers), where)
    remarks += [*more, *worse, *_cautions(section, servers, where)]
    names = ", ".join(server.name for server in servers[:6]) + (f" and {len(servers) - 6} more" if len(servers) > 6 else "")
    hints = []
    if (inter := _common(servers, "inter")) is not None and (seconds := _seconds(inter)) is not None:
        hints.append(f"HAProxy asks every {duration_text(seconds)}; the sidecar adapts within 100ms and 1s unless the probe has `interval`")
    draft = ServiceDraft(
        name=service_name(section.name, taken),
        pool=section.name,
        probe=probe,
        policy=policy,
        slow_start=_slow_start(servers),
        comments=[f"{where}, {file}:{section.number}, servers {names}"],
        hints=hints,
    )
    return draft, remarks


def _common(servers: Sequence[Server], option: str) -> str | None:
    """The value that all servers share; None when they differ or none has it."""
    values = {server.options.get(option) for server in servers}
    return values.pop() if len(values) == 1 else None


def _probe(section: Section, servers: Sequence[Server], where: str) -> tuple[dict[str, Any], list[str]]:
    remarks: list[str] = []
    check = section.last("option", "httpchk")
    foreign = next((name for name in _OTHER_CHECKS if section.last("option", name)), None)
    tls = any("ssl" in server.options or "check-ssl" in server.options for server in servers)
    if check is not None:
        probe, remarks = _http(section, check, tls, where)
    elif foreign == "ssl-hello-chk" or tls:
        probe = {"tls": True}
    else:
        probe = {"tcp": True}
        if foreign is not None:
            remarks.append(f"{where}: `option {foreign}` has no translation: the TCP probe proves less; think of `command:` or `http:`")
    if "http" not in probe and "https" not in probe and not any("check" in server.options for server in servers):
        remarks.append(
            f"{where}: HAProxy does not check these servers, so only a TCP probe was written: give it `probe: {{http: /health}}`"
        )
    probe.update(_port(servers, where, remarks))
    probe.update(_tls(servers, probe, where, remarks))
    return probe, remarks


def _port(servers: Sequence[Server], where: str, remarks: list[str]) -> dict[str, Any]:
    port = _common(servers, "port")
    if port is not None and port.isascii() and port.isdigit():
        return {"port": int(port)}
    if any("port" in server.options for server in servers):
        remarks.append(f"{where}: its servers have different check ports: one probe has one port; split the backend or answer on one port")
    if any("addr" in server.options for server in servers):
        remarks.append(f"{where}: `addr` checks another address than the one that serves; the sidecar asks the server itself")
    return {}


def _tls(servers: Sequence[Server], probe: Mapping[str, Any], where: str, remarks: list[str]) -> dict[str, Any]:
    if "https" not in probe and "tls" not in probe:
        return {}
    options: dict[str, Any] = {}
    if _common(servers, "verify") == "none":
        options["verify"] = False
    if (ca := _common(servers, "ca-file")) is not None and ca.startswith("/"):
        options["ca"] = ca
    elif ca is not None and not ca.startswith("@"):
        remarks.append(f"{where}: `ca-file {ca}` is relative; write its full path as `tls: {{ca: …}}`")
    name = _common(servers, "check-sni") or _constant(_common(servers, "sni"))
    if name:
        options["server_name"] = name
    if any("crt" in server.options for server in servers):
        remarks.append(f"{where}: its servers want a client certificate (`crt`): give the probe its own as `tls: {{cert: …, key: …}}`")
    return {"tls": options} if options else {}


def _constant(expression: str | None) -> str | None:
    """`str(shop.example)` is a name; any other expression depends on the request."""
    found = re.fullmatch(r"str\(([A-Za-z0-9_.-]+)\)", expression or "")
    return found.group(1) if found else None


def _http(section: Section, check: Line, tls: bool, where: str) -> tuple[dict[str, Any], list[str]]:
    """The probe that asks what `option httpchk` and `http-check` ask."""
    words = check.words[2:]
    method, uri = "OPTIONS", "/"
    if len(words) == 1:
        uri = words[0]
    elif words:
        method, uri = words[0], words[1]
    headers = _old_headers(words)
    remarks: list[str] = []
    for line in section.all("http-check", "send"):
        options, sent = _send(line.words[2:])
        method, uri = options.get("meth", method), options.get("uri", uri)
        headers.update(sent)
        if "body" in options or "uri-lf" in options:
            remarks.append(f"{where} (line {line.number}): a check with a body or a computed path has no translation; review the probe")
    probe: dict[str, Any] = {"https" if tls else "http": uri}
    if method in ("HEAD", "OPTIONS"):
        probe["method"] = method
    elif method != "GET":
        remarks.append(f"{where}: probes never use {method[:20]!r}; GET is asked instead")
    host = next((headers.pop(name) for name in list(headers) if name.lower() == "host"), None)
    if host:
        probe["host"] = host
    dropped = [name for name in headers if name.lower() in ("connection", "content-length", "accept-encoding", "user-agent")]
    kept = {name: value for name, value in headers.items() if name not in dropped or name.lower() == "user-agent"}
    if kept:
        probe["headers"] = kept
    expect = _expect(section, where, remarks)
    if expect:
        probe["expect"] = expect
    for word, why in _UNTRANSLATED.items():
        remarks += [f"{where} (line {line.number}): {why}" for line in section.all("http-check", word)[-1:]]
    return probe, remarks


_UNTRANSLATED = {
    "disable-on-404": "`disable-on-404` has no translation: a 404 is a failed probe; to drain, use `lb-sidecar drain`",
    "connect": "`http-check connect` was not followed: review the probe's port and TLS",
    "set-var": "`http-check set-var` has no translation",
}


def _old_headers(words: Words) -> dict[str, str]:
    """Headers smuggled in after the version, as `HTTP/1.1\\r\\nHost: shop`, the way before HAProxy 2.2."""
    rest = "\n".join(words[2:]).replace("\r", "\n")
    pairs = (line.partition(":") for line in rest.split("\n")[1:])
    return {name.strip(): value.strip() for name, colon, value in pairs if colon and name.strip()}


def _send(words: Words) -> tuple[dict[str, str], dict[str, str]]:
    options: dict[str, str] = {}
    headers: dict[str, str] = {}
    rest = iter(words)
    for word in rest:
        if word == "hdr":
            name = next(rest, "")
            headers[name] = next(rest, "")
        else:
            options[word] = next(rest, "")
    return options, headers


def _expect(section: Section, where: str, remarks: list[str]) -> dict[str, Any]:
    expect: dict[str, Any] = {}
    for line in section.all("http-check", "expect"):
        words = [word for word in line.words[2:] if not re.fullmatch(r"(min-recv|comment|ok-status|error-status|tout-status|on-\w+)", word)]
        negated = "!" in words
        words = [word for word in words if word != "!"]
        kind = next((word for word in words if word in ("status", "rstatus", "string", "rstring", "hdr", "fhdr")), "")
        value = words[words.index(kind) + 1] if kind and words.index(kind) + 1 < len(words) else ""
        if kind in ("status", "rstatus") and (ranges := status_ranges(kind, value, negated)):
            good = [low if low == high else f"{low}-{high}" for low, high in ranges]
            expect["status"] = good if len(good) > 1 else good[0]
        elif kind == "string" and not negated:
            expect["body"] = value
        elif kind == "rstring" and not negated:
            expect["regex"] = value
        else:
            remarks.append(f"{where} (line {line.number}): `{' '.join(line.words)[:100]}` has no translation; review `expect`")
    return expect


def status_ranges(kind: str, value: str, negated: bool) -> list[tuple[int, int]]:
    """The statuses from 100 to 599 that an `expect status|rstatus` takes, as ranges; none when it is not understood.

    >>> status_ranges("rstatus", "^[23]", False), status_ranges("status", "200,204", False)
    ([(200, 399)], [(200, 200), (204, 204)])
    """
    try:
        if kind == "rstatus":
            if len(value) > 60:
                return []
            pattern = re.compile(value)
            good = {status for status in range(100, 600) if pattern.search(str(status))}
        else:
            bounds = [part.partition("-") for part in value.split(",")]
            good = {status for low, _, high in bounds for status in range(int(low), int(high or low) + 1) if 100 <= status < 600}
    except (re.error, ValueError):
        return []
    good = set(range(100, 600)) - good if negated else good
    ranges: list[tuple[int, int]] = []
    for status in sorted(good):
        if ranges and ranges[-1][1] == status - 1:
            ranges[-1] = (ranges[-1][0], status)
        else:
            ranges.append((status, status))
    return ranges


def _policy(servers: Sequence[Server]) -> dict[str, Any]:
    """fall and rise, the most patient of the servers'; 1 is left to our default, which is safer."""
    policy = {}
    for key in ("fall", "rise"):
        values = [int(text) for server in servers if (text := server.options.get(key, "")).isascii() and text.isdigit() and len(text) < 5]
        if values and max(values) > 1:
            policy[key] = max(values)
    return policy


def _slow_start(servers: Sequence[Server]) -> str:
    seconds = _seconds(_common(servers, "slowstart") or "")
    return duration_text(seconds) if seconds is not None and 0 < seconds <= 3600 else ""


def _seconds(text: str) -> float | None:
    """HAProxy's time: a number of milliseconds, or with a unit."""
    found = re.fullmatch(r"([0-9]{1,9})(us|ms|s|m|h|d)?", text)
    return int(found.group(1)) * _SECONDS[found.group(2) or "ms"] if found else None


def _cautions(section: Section, servers: Sequence[Server], where: str) -> list[str]:
    """What a person must know before `mode: act`."""
    told: list[str] = []

    def having(option: str) -> str:
        return ", ".join(server.name for server in servers if option in server.options)

    if cut := ", ".join(server.name for server in servers if server.options.get("on-marked-down") == "shutdown-sessions"):
        told.append(f"{where}: `on-marked-down shutdown-sessions` on {cut}: taking it out cuts the requests under way")
    if agents := having("agent-check"):
        told.append(
            f"{where}: an agent speaks for {agents}: the sidecar will not overrule another's agent; "
            "let it answer instead (`agent: HOST:PORT` of the balancer, agent-addr and agent-port of the server)"
        )
    if tracked := having("track"):
        told.append(f"{where}: {tracked} track another server's check; the sidecar asks them themselves")
    balance = section.last("balance")
    if balance is not None and len(balance.words) > 1 and balance.words[1].partition("(")[0] in _STATIC_ALGORITHMS:
        told.append(f"{where}: `balance {balance.words[1][:40]}` may take only weights 0% and 100% while running: no slow start there")
    if having("cookie") or section.all("stick"):
        redispatch = "" if section.last("option", "redispatch") else ", and without `option redispatch` they may be answered 503 first"
        told.append(f"{where}: sessions stick to a server; taking it out moves them to another{redispatch}")
    if backups := having("backup"):
        told.append(f"{where}: {backups}: `backup`, so only when all others are out; probed and counted like the others")
    if having("slowstart") and not _slow_start(servers):
        told.append(f"{where}: its servers differ in `slowstart`: set the service's `slow_start`")
    for server in servers:
        if _is_nowhere(server):
            told.append(
                f"{where} (line {server.number}): {server.name} at {server.address[:60]!r} has no address to ask; it stays untouched"
            )
    return told

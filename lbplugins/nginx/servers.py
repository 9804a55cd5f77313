"""The include of one upstream: what the operator wrote, and our marks on it. Pure: text in, values out, and back.

A file without a header line is the operator's, taken as it is. With a mark of ours in it, the first line carries a checksum of
the rest; when that does not fit, a hand was at work. A mark is a comment behind the `;` of a server line, and tells how to get
the operator's own line back, byte for byte:

    server 10.0.0.5:8080 weight=50 max_fails=0;  # lb-sidecar nominal=1 cut=50
    server 10.0.0.6:8080 weight=100 max_fails=0;  # lb-sidecar nominal=1
    server 10.0.0.7:8080 down weight=100;  # lb-sidecar ejected held nominal=default
"""

from __future__ import annotations

import hashlib
import ipaddress
import re
from dataclasses import dataclass, field, replace

from lbplugins.nginx.syntax import Kind, SyntaxFault, Token, tokens
from lbplugins.values import FULL, NONE, Address, Operator, Serve, Setting

MAX_BYTES = 1 << 20
MAX_SERVERS = 10_000
MAX_NOMINAL = 1_000_000
"""The largest operator's weight that we scale: nginx adds all weights up in a machine word."""
HASHING = frozenset({"hash", "ip_hash"})
"""Methods under which a changed weight sends most clients to another server."""

_HEADER = re.compile(r"# lb-sidecar sum=([0-9a-f]{64})\b[^\n]*\n")
_HEADER_WORDS = "written by lb-sidecar; after an edit by hand run: lb-sidecar adopt"
_MARK = "  # lb-sidecar "
_WORDS = re.compile(
    r"(?P<ejected>ejected)?(?: ?(?P<maintenance>maintenance))?(?: ?(?P<held>held))?"
    r"(?: ?nominal=(?P<nominal>default|[1-9][0-9]{0,6}))?(?: cut=(?P<cut>[1-9][0-9]?))?"
)
_EOL = re.compile(r"\r?\n\Z")
_HOST = re.compile(r"[A-Za-z0-9_](?:[A-Za-z0-9_.-]{0,253})")


class IncludeFault(ValueError):
    """This include cannot be read, or must not be written so. One sentence that says what to do."""


@dataclass(frozen=True, slots=True)
class Server:
    """One `server` line. `text`: the operator's own, from `server` through `;`; `tail`: what follows on the line; both without our marks.

    `name`: the address as written. `crowded`: something else than a comment follows on its line. `noted`: a comment of ours stood there.
    """

    text: str
    tail: str
    name: str
    ejected: bool = False
    maintenance: bool = False
    cut_pct: int = 100
    address: Address | None = None
    weight: int | None = None
    down: bool = False
    drain: bool = False
    backup: bool = False
    crowded: bool = False
    odd_weight: bool = False
    line: int = field(default=0, compare=False)
    noted: bool = field(default=False, compare=False)
    fault: str = field(default="", compare=False)

    @property
    def nominal(self) -> int:
        """The operator's weight; nginx takes 1 where none is written."""
        return 1 if self.weight is None else self.weight

    @property
    def ours(self) -> Setting:
        return Setting(NONE if self.ejected else FULL, self.cut_pct)

    @property
    def operator(self) -> Operator:
        if self.maintenance or self.down:
            return Operator.MAINTENANCE
        return Operator.DRAINING if self.drain else Operator.READY

    @property
    def is_out(self) -> bool:
        """No new request goes there, whoever said so."""
        return self.ejected or self.maintenance or self.down or self.drain

    @property
    def is_marked(self) -> bool:
        return self.ejected or self.maintenance or self.cut_pct < 100

    @property
    def locked(self) -> str:
        """Why a mark of ours cannot be put on this line, or ''."""
        if self.crowded:
            return f"line {self.line}: another directive stands on the line of server {self.name}; put each on a line of its own"
        if self.name.startswith("unix:"):
            return f"line {self.line}: {self.name} is a unix socket, which has no address and port to judge it by"
        if self.address is None:
            return f"line {self.line}: {self.name!r} is not HOST, HOST:PORT or [IPV6]:PORT"
        return ""


@dataclass(frozen=True, slots=True)
class Include:
    """One include: servers, and between them whatever else stands there, verbatim. `edited`: '' or how it shows that a hand was at work."""

    parts: tuple[str | Server, ...] = ()
    directives: frozenset[str] = frozenset()
    edited: str = field(default="", compare=False)

    @property
    def servers(self) -> tuple[Server, ...]:
        return tuple(part for part in self.parts if isinstance(part, Server))

    @property
    def is_marked(self) -> bool:
        return any(server.is_marked for server in self.servers)

    @property
    def fault(self) -> str:
        """Why our marks in this file make no sense any more, or ''."""
        return next((server.fault for server in self.servers if server.fault), "")

    def named(self, name: str) -> tuple[Server, ...]:
        return tuple(server for server in self.servers if server.name == name)

    def can_cut(self) -> bool:
        """May the weights be scaled: none is too large or written in a way that we could not give back."""
        plain = all(not s.odd_weight and not s.crowded and s.nominal <= MAX_NOMINAL for s in self.servers)
        return plain and not self.directives & HASHING

    def with_server(self, old: Server, new: Server) -> Include:
        return replace(self, parts=tuple(new if part is old else part for part in self.parts))


def parse(text: str) -> Include:
    """The include as values. IncludeFault when it is no list of servers that we can read."""
    if len(text) > MAX_BYTES:
        raise IncludeFault(f"is larger than {MAX_BYTES} bytes")
    if "\0" in text:
        raise IncludeFault("holds a NUL byte; restore it")
    header = _HEADER.match(text)
    body = text[header.end() :] if header else text
    try:
        parts, directives = _parts(body, 2 if header else 1)
    except SyntaxFault as fault:
        raise IncludeFault(str(fault)) from fault
    include = Include(parts, directives)
    if not include.servers:
        raise IncludeFault("has no server, so nginx will refuse its next reload; restore its `server HOST:PORT;` lines")
    if len(include.servers) > MAX_SERVERS:
        raise IncludeFault(f"has more than {MAX_SERVERS} servers")
    return replace(include, edited=_edited(header, body, include))


def _edited(header: re.Match[str] | None, body: str, include: Include) -> str:
    if header:
        return "" if header[1] == checksum(body) else "its checksum does not fit"
    noted = any(server.noted for server in include.servers) or _HEADER.search(body)
    return "it bears marks of lb-sidecar but no checksum" if noted else ""


def _parts(body: str, first_line: int) -> tuple[tuple[str | Server, ...], frozenset[str]]:
    parts: list[str | Server] = []
    directives: set[str] = set()
    words: list[Token] = []
    done = 0
    # The lines of the body are counted from 1; people count from the top of the file.
    shift = first_line - 1
    for token in tokens(body):
        if token.kind is Kind.WORD:
            words.append(token)
        elif token.kind in (Kind.OPEN, Kind.CLOSE):
            raise SyntaxFault(f"line {token.line + shift}: a block cannot stand here; this file holds `server` lines only")
        elif token.kind is Kind.END and words:
            directives.add(words[0].value)
            if words[0].value == "include":
                raise SyntaxFault(f"line {token.line + shift}: an include cannot stand here; put its servers into this file")
            if words[0].value == "server":
                tail_end, crowded = _tail(body, token.end)
                parts += [body[done : words[0].start], _server(words, body[token.end : tail_end], body, token.end, crowded, shift)]
                done = tail_end
            words = []
    if words:
        raise SyntaxFault(f"line {words[0].line + shift}: the file ends in the middle of a directive")
    parts.append(body[done:])
    return tuple(part for part in parts if part != ""), frozenset(directives)


def _tail(body: str, at: int) -> tuple[int, bool]:
    """Where the rest of a server's line ends, and whether another directive stands on it."""
    newline = body.find("\n", at)
    end = len(body) if newline < 0 else newline + 1
    rest = body[at:end].strip()
    return (at, True) if rest and not rest.startswith("#") else (end, False)


def _server(words: list[Token], tail: str, body: str, end: int, crowded: bool, shift: int) -> Server:
    start = words[0].start
    text = body[start:end]
    eol = _EOL.search(tail)
    line_end = eol[0] if eol else ""
    kept, comment, said = tail[: len(tail) - len(line_end)].rpartition(_MARK)
    marks = _WORDS.fullmatch(said) if comment and said else None
    line = words[0].line + shift
    if marks is None:
        return replace(_plain(text, words, crowded), tail=tail, line=line)
    own, fault = _unmarked(text, marks)
    clean = [token for token in tokens(own) if token.kind is Kind.WORD]
    plain = replace(_plain(own, clean, crowded), tail=kept + line_end, line=line, noted=True)
    if fault:
        return replace(plain, fault=f"line {line}: {fault}; correct the line or delete its lb-sidecar comment")
    # `down` gone from the line but our comment left: whoever took it away has brought the server back.
    is_down = plain.down if marks["held"] else text.endswith(" down;")
    return replace(
        plain,
        ejected=bool(marks["ejected"]) and is_down,
        maintenance=bool(marks["maintenance"]) and is_down,
        cut_pct=int(marks["cut"] or 100),
    )


def _unmarked(text: str, marks: re.Match[str]) -> tuple[str, str]:
    """The operator's own statement, and '' or what in it does not fit our mark."""
    if (marks["ejected"] or marks["maintenance"]) and not marks["held"]:
        text = _without_last(text, " down")
    if not marks["nominal"]:
        return text, "its mark names a cut but no nominal weight" if marks["cut"] else ""
    cut = int(marks["cut"] or 100)
    if marks["nominal"] == "default":
        scaled = f" weight={cut}"
        own = _without_last(text, scaled)
        return own, "" if own != text else f"its mark says{scaled}, the line does not"
    nominal = int(marks["nominal"])
    weights = _weight_tokens(text)
    if len(weights) != 1 or weights[0].value != f"weight={nominal * cut}":
        return text, f"its mark says weight={nominal * cut}, the line does not"
    return text[: weights[0].start] + f"weight={nominal}" + text[weights[0].end :], ""


def _without_last(text: str, words: str) -> str:
    return text.removesuffix(words + ";") + ";" if text.endswith(words + ";") else text


def _weight_tokens(text: str) -> list[Token]:
    return [token for token in tokens(text) if token.kind is Kind.WORD and token.value.startswith("weight=")]


def _plain(text: str, words: list[Token], crowded: bool) -> Server:
    """A server as the operator wrote it."""
    values = [word.value for word in words]
    name = values[1] if len(values) > 1 else ""
    flags = values[2:]
    weights = [value.removeprefix("weight=") for value in flags if value.startswith("weight=")]
    number = int(weights[0]) if len(weights) == 1 and re.fullmatch(r"[1-9][0-9]{0,9}", weights[0]) else None
    quoted = any(token.end - token.start != len(token.value) for token in words if token.value.startswith("weight="))
    return Server(
        text=text,
        tail="",
        name=name,
        address=address_of(name),
        weight=number,
        down="down" in flags,
        drain="drain" in flags,
        backup="backup" in flags,
        crowded=crowded,
        odd_weight=bool(weights) and (number is None or quoted),
    )


def address_of(name: str) -> Address | None:
    """Where `HOST`, `HOST:PORT`, `[V6]` or `[V6]:PORT` points to (port 80 unless said); None for anything else, a unix socket too."""
    try:
        with_port = name if re.search(r":[0-9]+\Z", name) and not name.endswith("]") else f"{name}:80"
        address = Address.parse(with_port)
        if ":" not in address.host:
            _check_host(address.host)
    except ValueError:
        return None
    return address


def _check_host(host: str) -> None:
    if re.fullmatch(r"[0-9.]+", host):
        ipaddress.IPv4Address(host)
    elif not _HOST.fullmatch(host):
        raise ValueError(f"{host!r} is not a host name")


def checksum(body: str) -> str:
    return hashlib.sha256(body.encode("utf-8", "surrogateescape")).hexdigest()


def render(include: Include) -> str:
    """The text of an include: with nothing of ours in it, exactly the operator's. IncludeFault when it would not read back as the same."""
    if not include.servers:
        raise IncludeFault("a file without servers is never written: nginx would refuse it")
    is_scaled = any(server.cut_pct < 100 for server in include.servers)
    body = "".join(part if isinstance(part, str) else _line(part, is_scaled) for part in include.parts)
    text = f"# lb-sidecar sum={checksum(body)} {_HEADER_WORDS}\n{body}" if include.is_marked else body
    again = parse(text)
    if again.parts != include.parts or again.edited or again.fault:
        raise IncludeFault("the file would not read back as it was meant; it is left as it is")
    return text


def _line(server: Server, is_scaled: bool) -> str:
    # While one weight of a file is cut, all are a hundredfold, so that 1 % of weight 1 is a whole number.
    text, marks = server.text, []
    if server.ejected:
        marks.append("ejected")
    if server.maintenance:
        marks.append("maintenance")
    if marks and server.down:
        marks.append("held")
    if is_scaled:
        text = _scaled(server)
        marks.append(f"nominal={'default' if server.weight is None else server.weight}")
    if server.cut_pct < 100:
        marks.append(f"cut={server.cut_pct}")
    if (server.ejected or server.maintenance) and not server.down:
        text = text.removesuffix(";") + " down;"
    if not marks:
        return text + server.tail
    eol = _EOL.search(server.tail)
    line_end = eol[0] if eol else ""
    return text + server.tail[: len(server.tail) - len(line_end)] + _MARK + " ".join(marks) + line_end


def _scaled(server: Server) -> str:
    weight = server.nominal * server.cut_pct
    if server.weight is None:
        return server.text.removesuffix(";") + f" weight={weight};"
    token = _weight_tokens(server.text)[0]
    return server.text[: token.start] + f"weight={weight}" + server.text[token.end :]


def set_ours(include: Include, server: Server, want: Setting, *, others_serve: bool = False) -> Include:
    """Our own axis of one server made so. `others_serve`: servers outside this file get traffic too. IncludeFault says why not."""
    if want.serve not in (FULL, NONE):
        raise IncludeFault("nginx cannot drain; take the server out instead")
    if not 1 <= want.weight_pct <= 100:
        raise IncludeFault(f"a weight of {want.weight_pct} % is not between 1 and 100")
    if want.weight_pct < 100 and not include.can_cut():
        raise IncludeFault("weights of this upstream cannot be cut (it hashes, or a weight is too large or oddly written)")
    changed = _writable(include, server, replace(server, ejected=want.serve is NONE, cut_pct=want.weight_pct))
    if want.serve is NONE and not server.ejected and not others_serve and all(s.is_out for s in changed.servers):
        raise IncludeFault("without it no server of this upstream would get traffic, and nginx would answer 502")
    return changed


def set_operator(include: Include, server: Server, serve: Serve) -> Include:
    """Our mark on the operator's axis made so: FULL takes only our own mark away. IncludeFault says why not."""
    if serve is Serve.DRAIN:
        raise IncludeFault("nginx cannot drain; use maint")
    if serve is FULL and not server.maintenance and (server.down or server.drain):
        raise IncludeFault("somebody wrote `down` or `drain` into the file by hand; take it out there")
    return _writable(include, server, replace(server, maintenance=serve is NONE))


def _writable(include: Include, old: Server, new: Server) -> Include:
    if new == old:
        return include
    if old.locked:
        raise IncludeFault(old.locked)
    return include.with_server(old, new)

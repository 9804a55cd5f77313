"""Probe specs: what is accepted, what is refused with which advice, and the key."""

from __future__ import annotations

import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from lbplugins.values import Address
from sidecar.core.policy import ProbePlan
from sidecar.net.addresses import host_problem, ip_problem
from sidecar.net.units import duration_text, parse_duration, parse_share, parse_size, share_text, size_text
from sidecar.probes.http import render
from sidecar.probes.once import parse_url
from sidecar.probes.options import Kind, ProbeSpec, parse_statuses, statuses_text
from tests.edges.probes.lab import spec

KINDS: list[tuple[dict[str, Any], Kind, str]] = [
    ({"http": "/health"}, Kind.HTTP, "http:/health"),
    ({"https": "/health"}, Kind.HTTPS, "https:/health"),
    ({"https": "/", "tls": {}}, Kind.HTTPS, "https:/"),
    ({"tcp": True}, Kind.TCP, "tcp"),
    ({"tls": True}, Kind.TLS, "tls"),
    ({"tls": {}}, Kind.TLS, "tls"),
    ({"grpc": ""}, Kind.GRPC, "grpc"),
    ({"grpc": "shop.Cart"}, Kind.GRPC, "grpc:shop.Cart"),
    ({"http": "/health", "name": "deep"}, Kind.HTTP, "http:/health"),
    ({"http": "/health", "interval": "5s"}, Kind.HTTP, "http:/health"),
    ({"http": "/health", "expect": {"status": ["200-299", "300-399"]}}, Kind.HTTP, "http:/health"),
]


@pytest.mark.parametrize(("keys", "kind", "key"), KINDS, ids=[str(k[0]) for k in KINDS])
def test_plain_spec_has_a_readable_key(keys: dict[str, Any], kind: Kind, key: str) -> None:
    assert (spec(**keys).kind, spec(**keys).key) == (kind, key)


MEANINGS: list[dict[str, Any]] = [
    {"http": "/h"},
    {"http": "/h", "port": 81},
    {"http": "/h", "host": "a"},
    {"http": "/h", "headers": {"A": "1"}},
    {"http": "/h", "method": "HEAD"},
    {"http": "/h", "timeout": "1s"},
    {"http": "/h", "fresh": True},
    {"http": "/h", "max_body": "1KiB"},
    {"http": "/h", "expect": {"status": 200}},
    {"http": "/h", "expect": {"header": {"A": "1"}}},
    {"http": "/h", "expect": {"body": "x"}},
    {"http": "/h", "expect": {"regex": "x"}},
    {"http": "/h", "expect": {"json": {"a": 1}}},
    {"http": "/h", "expect": {"json": {"a": "1"}}},
    {"http": "/h", "expect": {"identity": {"body": "x"}}},
    {"http": "/h" + "x" * 100},
    {"http": "/h" + "x" * 101},
    {"https": "/h"},
    {"https": "/h", "tls": {"verify": False}},
    {"https": "/h", "tls": {"warn_days": 3}},
    {"grpc": ""},
    {"grpc": "", "tls": True},
    {"tls": {"server_name": "a"}},
    {"command": ["/bin/true"]},
    {"command": ["/bin/true", "-v"]},
]


def test_each_meaning_has_its_own_key() -> None:
    keys = [spec(**m).key for m in MEANINGS]

    assert len(set(keys)) == len(keys)
    assert all(len(k) <= 91 and k.isprintable() for k in keys)


@pytest.mark.parametrize("keys", MEANINGS, ids=str)
def test_spec_survives_its_own_dump(keys: dict[str, Any]) -> None:
    one = spec(**keys)

    again = ProbeSpec.model_validate(one.model_dump(mode="json", by_alias=True, exclude_unset=True))

    assert again == one and again.key == one.key


def test_plan_tells_the_core_what_it_needs() -> None:
    one = spec(http="/h", interval="500ms", timeout="2s", port=81)

    assert one.plan() == ProbePlan(one.key, 0.5, 2.0, 81)
    assert spec(tcp=True).plan() == ProbePlan("tcp")


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({}, "what should be asked"),
    ({"http": "/", "tcp": True}, "http and tcp together"),
    ({"http": "health"}, "starts with /"),
    ({"http": "/a b"}, "percent-encode"),
    ({"http": "/a\r\nX: y"}, "percent-encode"),
    ({"http": "/" + "x" * 3000}, "2048"),
    ({"tcp": False}, "Input should be True"),
    ({"http": "/", "speed": 1}, "Extra inputs"),
    ({"http": "/", "tls": True}, "write https:"),
    ({"https": "/", "tls": True}, "leave out"),
    ({"tcp": True, "expect": {"status": 200}}, "only for http and https"),
    ({"tcp": True, "host": "a"}, "no meaning for tcp"),
    ({"http": "/", "port": True}, "valid integer"),
    ({"http": "/", "port": 0}, "greater than or equal to 1"),
    ({"http": "/", "interval": 5}, "with its unit"),
    ({"http": "/", "interval": "0"}, "greater than or equal to 0.01"),
    ({"http": "/", "timeout": "5 parsecs"}, "with its unit"),
    ({"http": "/", "host": "a\r\nb"}, "neither an IP address nor a host name"),
    ({"http": "/", "headers": {"A": "1\r\nB: 2"}}, "one line"),
    ({"http": "/", "headers": {"A B": "1"}}, "not a header name"),
    ({"http": "/", "headers": {"Host": "x"}}, "write `host:`"),
    ({"http": "/", "headers": {"Accept-Encoding": "gzip"}}, "not yours"),
    ({"http": "/", "method": "POST"}, "GET"),
    ({"http": "/", "method": "HEAD", "expect": {"body": "x"}}, "HEAD has no body"),
    ({"http": "/", "max_body": "2MiB"}, "less than or equal to"),
    ({"http": "/", "expect": {"status": "20x"}}, "not a status"),
    ({"http": "/", "expect": {"status": "399-200"}}, "200-399"),
    ({"http": "/", "expect": {"status": []}}, "at least one status"),
    ({"http": "/", "expect": {"regex": "("}}, "not a regular expression"),
    ({"http": "/", "expect": {"regex": "a" * 201}}, "200 at most"),
    ({"http": "/", "expect": {"regex": r"(a)\1"}}, "cannot be used"),
    ({"http": "/", "expect": {"regex": r"(?=a)b"}}, "cannot be used"),
    ({"http": "/", "expect": {"regex": "(a{90}){90}"}}, "too large"),
    ({"http": "/", "expect": {"identity": {"header": "A"}}}, "go together"),
    ({"http": "/", "expect": {"identity": {}}}, "give either"),
    ({"https": "/", "tls": {"key": "/k"}}, "key without cert"),
    ({"https": "/", "tls": {"min_version": "1.0"}}, "1.2"),
    ({"grpc": "a b"}, "gRPC service name"),
    ({"command": "/bin/true --all"}, "tuple"),
    ({"command": ["true"]}, "full path"),
    ({"command": ["/bin/true", "--host={host}"]}, "stand alone"),
    ({"command": ["/bin/true", "\0"]}, "NUL"),
]


@pytest.mark.parametrize(("keys", "advice"), REFUSED, ids=[str(r[0])[:60] for r in REFUSED])
def test_refused_with_advice(keys: dict[str, Any], advice: str) -> None:
    with pytest.raises(ValidationError, match=re.escape(advice)):
        spec(**keys)


def test_schema_can_be_shipped() -> None:
    schema = ProbeSpec.model_json_schema()

    assert set(schema["properties"]) >= {"http", "https", "tcp", "tls", "grpc", "command", "expect"}
    assert all("description" in field for field in schema["properties"].values())


def test_statuses_merge() -> None:
    assert statuses_text(parse_statuses([204, "200-203", "404", 300])) == "200-204,300,404"
    assert parse_statuses(parse_statuses("200-399,404")) == ((200, 399), (404, 404))


def test_rendered_request_leaves_out_the_default_port() -> None:
    assert b"Host: 10.0.0.5\r\n" in render(spec(http="/"), Address("10.0.0.5", 80))
    assert b"Host: 10.0.0.5:443\r\n" in render(spec(http="/"), Address("10.0.0.5", 443))
    assert b"Host: [::1]\r\n" in render(spec(https="/"), Address("::1", 443))


# ---- units ----


@pytest.mark.parametrize(
    ("text", "seconds"), [("250ms", 0.25), ("1s", 1), ("1.5m", 90), ("1h", 3600), ("2d", 172800), ("0", 0), ("10us", 1e-5)]
)
def test_duration(text: str, seconds: float) -> None:
    assert parse_duration(text) == pytest.approx(seconds)


@pytest.mark.parametrize("text", ["", "5", 5, True, None, "s", "-1s", "1 s", "1e3s", "1s\n2s", "٣s", "inf", "1ks", ["1s"]])
def test_no_duration(text: object) -> None:
    with pytest.raises(ValueError, match="write a number with its unit"):
        parse_duration(text)


@given(st.integers(min_value=0, max_value=10**13))
def test_duration_survives_its_text(microseconds: int) -> None:
    seconds = microseconds / 1e6

    assert parse_duration(duration_text(seconds)) == pytest.approx(seconds, rel=1e-9, abs=1e-12)


@given(st.integers(min_value=0, max_value=10**12))
def test_size_survives_its_text(size: int) -> None:
    assert parse_size(size_text(size)) == size


@given(st.integers(min_value=0, max_value=10_000))
def test_share_survives_its_text(hundredths: int) -> None:
    assert parse_share(share_text(hundredths / 10_000)) == pytest.approx(hundredths / 10_000)


@pytest.mark.parametrize("text", ["101%", "50", 0.5, "-1%", "%", "5e1%"])
def test_no_share(text: object) -> None:
    with pytest.raises(ValueError, match="as 50%"):
        parse_share(text)


@pytest.mark.parametrize("text", ["1.5KiB", "64", 64, "64kb", "64 KiB", "-1B"])
def test_no_size(text: object) -> None:
    with pytest.raises(ValueError, match="as 512B, 64KiB"):
        parse_size(text)


# ---- addresses ----


@pytest.mark.parametrize("host", ["10.0.0.5", "::1", "fe80::1%eth0", "shop.example", "shop_1.svc.", "localhost", "127.0.0.1", "0x7f.1"])
def test_host(host: str) -> None:
    assert host_problem(host) is None


@pytest.mark.parametrize("host", ["", "a b", "a/b", "user@host", "-x", "a..b", "a" * 254, "[::1]", "a\n", "169.254.169.254", "ff02::1"])
def test_no_host(host: str) -> None:
    assert host_problem(host)


@pytest.mark.parametrize("ip", ["::ffff:169.254.1.1", "64:ff9b::a9fe:a9fe", "2002:a9fe:a9fe::1", "255.255.255.255", "0.0.0.0", "::"])
def test_wrapped_and_odd_ips_are_never_asked(ip: str) -> None:
    assert "never asked" in (ip_problem(ip) or "")


# ---- URLs ----


def test_url_becomes_a_spec() -> None:
    assert parse_url("http://h/p?q=1") == (spec(http="/p?q=1"), Address("h", 80))
    assert parse_url("https://[::1]:8443") == (spec(https="/"), Address("::1", 8443))
    assert parse_url("tcp://h:1") == (spec(tcp=True), Address("h", 1))
    assert parse_url("tls://h") == (spec(tls=True), Address("h", 443))
    assert parse_url("grpc://h:9/shop.Cart") == (spec(grpc="shop.Cart"), Address("h", 9))


BAD_URLS = [
    ("h:80", "starts with http://"), ("ftp://h/", "starts with http://"), ("file:///etc/passwd", "starts with http://"),
    ("http://u:p@h/", "no user"), ("http://h/#x", "no user"), ("http:///x", "neither"), ("http://h:99999/", "not a URL"),
    ("http://169.254.169.254/", "never asked"), ("tcp://h", "needs a port"), ("tcp://h:1/x", "has no path"),
    ("http://h/a b", "percent-encode"), ("grpc://h:1/a%20b", "gRPC service"),
]  # fmt: skip


@pytest.mark.parametrize(("url", "advice"), BAD_URLS)
def test_bad_url_says_what_to_do(url: str, advice: str) -> None:
    with pytest.raises(ValueError, match=re.escape(advice)):
        parse_url(url)

"""`init`: a haproxy.cfg or nginx.conf becomes a configuration that loads, and what has no translation is said."""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sidecar.cli.init import init, run_init
from sidecar.config import Config, load
from sidecar.config.draft import DraftError, service_name
from sidecar.config.from_haproxy import parse as parse_haproxy
from sidecar.config.from_haproxy import servers_of, split, status_ranges
from sidecar.core.policy import Mode

GLOBAL = "global\n    stats socket /run/haproxy/admin.sock mode 660 level admin\n"

Made = tuple[Config, list[str], str]


@pytest.fixture
def haproxy(tmp_path: Path) -> Callable[[str], Made]:
    def made(text: str) -> Made:
        source = tmp_path / "haproxy.cfg"
        source.write_text(text)
        return loaded(*init(source, None), tmp_path)

    return made


@pytest.fixture
def nginx(tmp_path: Path) -> Callable[..., Made]:
    def made(text: str, **others: str) -> Made:
        for name, content in others.items():
            path = tmp_path / name.replace("__", "/").replace("_conf", ".conf")
            path.parent.mkdir(exist_ok=True)
            path.write_text(content)
        source = tmp_path / "nginx.conf"
        source.write_text(text)
        return loaded(*init(None, source), tmp_path)

    return made


def loaded(text: str, remarks: list[str], folder: Path) -> Made:
    """The made configuration, loaded by our own loader: no error, no contradiction, observing."""
    path = folder / "made.yaml"
    path.write_text(text)
    made = load(path)
    assert made.exit_code == 0, "\n".join(map(str, made.problems)) + text
    config = made.require()
    assert config.mode is Mode.OBSERVE
    return config, remarks, text


def probe_of(config: Config, name: str) -> dict[str, Any]:
    (spec,) = config.services[name].probe
    return spec.model_dump(mode="json", by_alias=True, exclude_defaults=True)


# ---- HAProxy ----


def test_a_stock_haproxy_becomes_a_configuration(haproxy: Callable[[str], Made]) -> None:
    config, remarks, text = haproxy(
        GLOBAL + "defaults\n    default-server inter 3s fall 5 rise 3\nbackend shop\n    option httpchk\n"
        '    http-check send meth GET uri /health ver HTTP/1.1 hdr Host shop.example hdr X-A "b c"\n'
        "    http-check expect status 200-299\n    server s1 10.0.0.5:8080 check\n    server s2 10.0.0.6:8080 check port 8080\n"
    )

    edge = config.balancers["edge"]
    assert edge.plugin == "haproxy" and edge.options.model_dump()["socket"] == ("/run/haproxy/admin.sock",)
    expected = {"http": "/health", "host": "shop.example", "headers": {"X-A": "b c"}, "expect": {"status": "200-299"}}
    assert probe_of(config, "shop") == expected
    assert (config.services["shop"].policy.fall, config.services["shop"].policy.rise) == (5, 3)
    assert "HAProxy asks every 3s" in text and "servers s1, s2" in text
    assert any("different check ports" in remark for remark in remarks)
    assert any("agent-check agent-inter" in remark for remark in remarks)


@pytest.mark.parametrize(
    ("lines", "probe"),
    [
        ("option httpchk", {"http": "/", "method": "OPTIONS"}),
        ("option httpchk /up", {"http": "/up", "method": "OPTIONS"}),
        ("option httpchk HEAD /up", {"http": "/up", "method": "HEAD"}),
        (r"option httpchk GET /up HTTP/1.1\r\nHost:\ old.example", {"http": "/up", "host": "old.example"}),
        ("option httpchk GET /up\n http-check expect ! rstatus ^5", {"http": "/up", "expect": {"status": "100-499"}}),
        ("option httpchk GET /up\n http-check expect status 200,204", {"http": "/up", "expect": {"status": "200,204"}}),
        ("option httpchk GET /up\n http-check expect string OK", {"http": "/up", "expect": {"body": "OK"}}),
        ("option httpchk GET /up\n http-check expect rstring ^OK", {"http": "/up", "expect": {"regex": "^OK"}}),
        ("option httpchk POST /up", {"http": "/up"}),
        ("option tcp-check", {"tcp": True}),
        ("option ssl-hello-chk", {"tls": True}),
        ("", {"tcp": True}),
    ],
)
def test_checks_become_probes(haproxy: Callable[[str], Made], lines: str, probe: dict[str, Any]) -> None:
    config, _, _ = haproxy(GLOBAL + f"backend shop\n {lines}\n server a 10.0.0.1:80 check\n")

    assert probe_of(config, "shop") == probe


def test_tls_servers_become_https_or_tls_probes(haproxy: Callable[[str], Made]) -> None:
    server = "server a 10.0.0.1:443 ssl verify none sni str(shop.example) check port 444"
    config, _, _ = haproxy(GLOBAL + f"backend one\n option httpchk GET /up\n {server}\nbackend two\n {server}\n")

    tls = {"verify": False, "server_name": "shop.example"}
    assert probe_of(config, "one") == {"https": "/up", "tls": tls, "port": 444}
    assert probe_of(config, "two") == {"tls": tls, "port": 444}


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("server b 10.0.0.2:80 check on-marked-down shutdown-sessions", "cuts the requests under way"),
        ("server b 10.0.0.2:80 agent-check agent-port 9000", "an agent speaks for b"),
        ("server b 10.0.0.2:80 backup", "b: `backup`, so only when all others are out"),
        ("server b 10.0.0.2:80 track other/a", "track another server's check"),
        ("server b 10.0.0.2:80 slowstart 30s", "differ in `slowstart`"),
        ("server b /run/b.sock", "no address to ask"),
        ("cookie SRV insert\n server b 10.0.0.2:80 cookie b", "without `option redispatch`"),
        ("balance source", "only weights 0% and 100%"),
        ("option mysql-check user x", "`option mysql-check` has no translation"),
        ("option httpchk\n http-check disable-on-404", "a 404 is a failed probe"),
        ("option httpchk\n http-check expect fhdr name x", "has no translation"),
        ("option httpchk POST /a", "GET is asked instead"),
        ("option httpchk GET /a{b", "could not be translated"),
        (".if defined(X)", "all branches were read"),
    ],
)
def test_what_has_no_translation_is_said(haproxy: Callable[[str], Made], line: str, words: str) -> None:
    _, remarks, _ = haproxy(GLOBAL + f"backend shop\n {line}\n server a 10.0.0.1:80\n")

    assert any(words in remark for remark in remarks), remarks


def test_defaults_apply_to_the_sections_after_them_and_by_name(haproxy: Callable[[str], Made]) -> None:
    config, _, _ = haproxy(
        GLOBAL + "backend early\n server a 10.0.0.1:80\ndefaults one\n option httpchk GET /one\ndefaults two\n option httpchk GET /two\n"
        "backend late\n server a 10.0.0.1:80 check\nbackend named from one\n server a 10.0.0.1:80 check\n"
        "listen own\n option httpchk GET /own\n server a 10.0.0.1:80 check\n"
    )

    asked = {name: service.probe[0].path for name, service in config.services.items()}
    assert asked == {"early": "", "late": "/two", "named": "/one", "own": "/own"}


@pytest.mark.parametrize(
    ("line", "socket", "words"),
    [
        ("stats socket /run/h.sock level admin", "/run/h.sock", None),
        ("stats socket unix@/run/h.sock user x level admin", "/run/h.sock", None),
        ("stats socket /run/h.sock level user", "/run/haproxy/admin.sock", "lacks `level admin`"),
        ("stats socket ipv4@127.0.0.1:9999 level admin", "/run/haproxy/admin.sock", "no unix socket"),
        ("maxconn 5", "/run/haproxy/admin.sock", "stats socket /run/haproxy/admin.sock mode 660 level admin"),
    ],
)
def test_the_admin_socket_is_found_or_its_line_is_given(haproxy: Callable[[str], Made], line: str, socket: str, words: str | None) -> None:
    config, remarks, _ = haproxy(f"global\n {line}\nbackend shop\n server a 10.0.0.1:80\n")

    assert config.balancers["edge"].options.model_dump()["socket"] == (socket,)
    told = [remark for remark in remarks if "socket" in remark]
    assert (told == []) if words is None else any(words in remark for remark in told)


def test_sections_without_servers_are_passed_over_and_none_at_all_is_an_error(haproxy: Callable[[str], Made]) -> None:
    config, remarks, _ = haproxy(
        GLOBAL + "backend a\n server x 10.0.0.1:80\nlisten stats\n bind :1\nbackend dyn\n server-template s 3 x.example:80\n"
    )

    assert list(config.services) == ["a"] and any("server-template" in remark for remark in remarks)
    config, remarks, _ = haproxy(GLOBAL + "backend a\n server x 10.0.0.1:80\n server y unix@/run/y\nbackend u\n server z unix@/run/z\n")
    assert list(config.services) == ["a"] and any("backend u: left out" in remark for remark in remarks)
    with pytest.raises(DraftError, match="no backend or listen section"):
        haproxy(GLOBAL)


def test_options_of_servers_follow_their_defaults_and_can_be_switched_off() -> None:
    (section,), _ = parse_haproxy(
        "backend a\n server x 10.0.0.1:80\n default-server check inter 5s\n server y 10.0.0.2:80 no-check inter 2s\n server z 1.1.1.1:1"
    )

    assert [dict(server.options) for server in servers_of(section)] == [{}, {"inter": "2s"}, {"check": "", "inter": "5s"}]


def test_words_are_split_as_haproxy_splits_them() -> None:
    assert split(r"""a "b # c" 'd\e' f\#g\ h "i"j # k""") == ("a", "b # c", "d\\e", "f#g h", "ij")
    assert split("") == split("   # x") == ()
    assert split('a ""') == ("a", "")


def test_status_patterns_become_ranges() -> None:
    assert status_ranges("rstatus", "^(2|3)[0-9][0-9]$", False) == [(200, 399)]
    assert status_ranges("status", "200-204,301", True) == [(100, 199), (205, 300), (302, 599)]
    assert status_ranges("rstatus", "(", False) == status_ranges("status", "ok", False) == []


# ---- Nginx ----

HTTP = "http { upstream shop { %s } server { server_name shop.example; location / { proxy_pass http://shop; } } }"


def test_an_upstream_that_includes_our_file_needs_no_edit(nginx: Callable[..., Made], tmp_path: Path) -> None:
    config, remarks, _ = nginx(HTTP % "zone shop 64k; include mine/shop.conf;", mine__shop_conf="server 10.0.0.1:80;")

    options = config.balancers["web"].options.model_dump(mode="json")
    assert (options["config"], options["servers_dir"]) == (str(tmp_path / "nginx.conf"), str(tmp_path / "mine"))
    assert probe_of(config, "shop") == {"http": "/", "host": "shop.example"}
    assert not any("replace" in remark or "create" in remark for remark in remarks)


def test_the_edit_of_a_plain_upstream_is_spelled_out(nginx: Callable[..., Made], tmp_path: Path) -> None:
    text = "http {\n upstream shop {\n  server 10.0.0.1:80 weight=5;\n  server 10.0.0.2:80\n    max_fails=0;\n }\n}\n"

    _, remarks, _ = nginx(text)

    (edit,) = [remark for remark in remarks if "replace" in remark]
    target = tmp_path / "sidecar.d" / "shop.conf"
    assert f"write {target}" in edit
    command = re.search(r"printf .* > \S+", edit)
    assert command is not None
    target.parent.mkdir()
    subprocess.run(["sh", "-c", command.group()], check=True)
    assert target.read_text() == "server 10.0.0.1:80 weight=5;\nserver 10.0.0.2:80 max_fails=0;\n"  # two on one line cannot be driven
    assert f"in {tmp_path / 'nginx.conf'}, replace its server lines 3 to 5 by: include {target};" in edit
    assert "nginx -t" in edit


def test_upstreams_in_included_files_are_found_with_their_place(nginx: Callable[..., Made], tmp_path: Path) -> None:
    config, remarks, text = nginx(
        "http {\n include conf.d/*.conf;\n}\n", conf_d__a_conf="", **{"conf.d__a_conf": "# x\nupstream api {\n server 10.0.0.1:80;\n}\n"}
    )

    assert list(config.services) == ["api"] and "a.conf:2" in text
    assert any(str(tmp_path / "conf.d" / "a.conf") in remark and "line 3" in remark for remark in remarks)


@pytest.mark.parametrize(
    ("text", "probe"),
    [
        ("http { upstream u { server a:80; } }", {"http": "/"}),
        ("http { upstream u { server a:80; } server { location / { proxy_pass https://u/x; } } }", {"https": "/"}),
        ("http { upstream u { server a:80; } server { location / { grpc_pass grpc://u; } } }", {"grpc": ""}),
        ("http { upstream u { server a:80; } server { location / { fastcgi_pass u; } } }", {"tcp": True}),
        ("stream { upstream u { server a:80; } server { proxy_pass u; } }", {"tcp": True}),
        ("upstream u { server a:80; }", {"http": "/"}),
    ],
)
def test_who_passes_to_an_upstream_says_how_to_ask(nginx: Callable[..., Made], text: str, probe: dict[str, Any]) -> None:
    config, _, _ = nginx(text)

    assert probe_of(config, "u") == probe


def test_cautions_for_nginx(nginx: Callable[..., Made]) -> None:
    _, remarks, _ = nginx(HTTP % "ip_hash; server unix:/run/a.sock; server 10.0.0.1:80; include gone.conf;")

    told = "\n".join(remarks)
    assert "unix socket" in told and "`ip_hash` ties users" in told and "needs root" in told and "unix:/run/a.sock;" not in told


def test_an_upstream_of_unix_sockets_alone_is_left_out_and_said(nginx: Callable[..., Made]) -> None:
    config, remarks, _ = nginx("upstream s { server unix:/run/a.sock; } upstream u { server 10.0.0.1:80; server unix:/run/b.sock; }")

    assert list(config.services) == ["u"]
    assert any("upstream s: left out, for all its servers are unix sockets" in remark for remark in remarks)


def test_no_upstream_is_an_error(nginx: Callable[..., Made]) -> None:
    with pytest.raises(DraftError, match="no `upstream` block"):
        nginx("http { server { listen 80; } }")


def test_a_file_that_includes_itself_ends(nginx: Callable[..., Made]) -> None:
    config, _, _ = nginx("include nginx.conf;\ninclude nginx.conf;\nupstream u { server a:80; }\n")

    assert config.services


# ---- both ----


def test_exactly_one_file_that_can_be_read(tmp_path: Path) -> None:
    for haproxy, nginx in ((None, None), (tmp_path, tmp_path)):
        with pytest.raises(DraftError, match="name one file"):
            init(haproxy, nginx)
    for arguments in ((tmp_path / "none", None), (None, tmp_path / "none")):
        with pytest.raises(DraftError, match="No such file"):
            init(*arguments)


def test_names_of_services_are_fit_and_unique() -> None:
    assert service_name("shop", {"x"}) == "shop"
    assert service_name("shop", {"shop", "shop.2"}) == "shop.3"
    assert service_name("a:b@c", set()) == "a_b_c"
    assert service_name(":", set()) == "service"


def test_the_command_writes_text_and_remarks_and_never_overwrites(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = tmp_path / "haproxy.cfg"
    source.write_text("backend shop\n server a 10.0.0.1:80\n")
    output = tmp_path / "made.yaml"

    assert run_init(source, None, output) == 0
    assert load(output).config is not None and output.stat().st_mode & 0o777 == 0o640
    assert run_init(source, None, output) == 2
    assert run_init(source, None, None) == 0
    assert run_init(tmp_path / "none", None, None) == 2

    out, err = capsys.readouterr()
    assert out == output.read_text()
    assert "was not touched" in err and "no admin socket found" in err and "Next: lb-sidecar check" in err and "No such file" in err


HAPROXY_WORDS = [
    "global", "defaults", "backend b", "listen l", "server s 10.0.0.1:80 check", "server t [::1]:80 ssl verify none sni str(a)",
    "option httpchk", "http-check send meth GET uri /a hdr Host h", "http-check expect status 200", "http-check expect rstring (",
    "http-check expect ! string x", "stats socket /a level admin", "default-server inter 1 fall 99999 rise x port 99999 slowstart 9d",
    "balance hash", '"', "'", "\\", "#", "x" * 300, "server é 1", "option httpchk GET /\x01", "port 70000", "cookie",
    "backend é{}:,[]", "listen '*'", "http-check send hdr Host a\tb", "from", "\0",
]  # fmt: skip
NGINX_WORDS = [
    "http {", "upstream u {", "server a:80;", "server unix:/a;", "}", ";", "{", "include x;", "include *;", "proxy_pass https://u;",
    '"', "'", "#", "upstream é {", "upstream 'a b' {", "server_name a.b *.c ~x;", "grpc_pass u;", "stream {", "\\", "${a}", "$b",
    "ip_hash;", "\0", "server {",
]  # fmt: skip


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(st.sampled_from(HAPROXY_WORDS), max_size=14), st.sampled_from(["\n", " ", "\n  "]))
def test_any_haproxy_file_gives_a_configuration_that_loads_or_a_reason(words: list[str], glue: str) -> None:
    _either_way("haproxy.cfg", "backend z\n server a 10.0.0.1:80\n" + glue.join(words), is_haproxy=True)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(st.sampled_from(NGINX_WORDS), max_size=14), st.sampled_from(["\n", " "]))
def test_any_nginx_file_gives_a_configuration_that_loads_or_a_reason(words: list[str], glue: str) -> None:
    _either_way("nginx.conf", "upstream z { server a:80; }\n" + glue.join(words), is_haproxy=False)


def _either_way(name: str, text: str, is_haproxy: bool) -> None:
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / name
        source.write_text(text)
        try:
            made, remarks = init(source, None) if is_haproxy else init(None, source)
        except DraftError as error:
            assert str(error)
        else:
            loaded(made, remarks, Path(folder))

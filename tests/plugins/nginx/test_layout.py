"""What an nginx configuration says about itself."""

from __future__ import annotations

import json
import os
from pathlib import Path

import crossplane
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lbplugins.api import BalancerError
from lbplugins.nginx.layout import is_current, scan
from lbplugins.nginx.syntax import Statement, SyntaxFault, statements
from lbplugins.values import Address

MAIN = """\
user www-data; pid /run/nginx.pid;
error_log logs/error.log warn;
include modules/*.conf;
events { worker_connections 64; }
http {
  map $http_upgrade $connection { default "upgrade{"; '' close; }
  log_format a '$remote_addr ; "$request"' "}";
  include conf.d/*.conf;
  server { location ~ "^/x{2,3}" { content_by_lua_block { local t = { a = "}" } -- } not yet
      ngx.say([[ }} ]]) } } error_log /elsewhere; }
}
stream { upstream tcp { server 10.0.0.9:1; include sidecar.d/tcp.conf; } }
"""
SHOP = """\
upstream shop { zone shop 64k;
  hash $uri;
  include sidecar.d/shop.conf; server 10.0.0.7:80 weight=4 down;
  include more/*.conf;
}
upstream untouched { server 10.0.0.8; }
"""


@pytest.fixture
def home(tmp_path: Path) -> Path:
    for name in ("modules", "conf.d", "sidecar.d", "more"):
        (tmp_path / name).mkdir()
    (tmp_path / "nginx.conf").write_text(MAIN)
    (tmp_path / "conf.d" / "shop.conf").write_text(SHOP)
    (tmp_path / "more" / "extra.conf").write_text("server extra:81;\n")
    return tmp_path


def test_upstreams_with_a_file_of_ours_are_found_through_includes(home: Path) -> None:
    layout = scan(home / "nginx.conf", home / "sidecar.d")

    assert set(layout.upstreams) == {"shop", "tcp"}
    shop, tcp = layout.upstreams["shop"], layout.upstreams["tcp"]
    assert shop.file == home / "sidecar.d" / "shop.conf" and shop.hashes and not tcp.hashes
    assert [(out.address, out.weight, out.is_out) for out in shop.outside] == [
        (Address("10.0.0.7", 80), 4, True),
        (Address("extra", 81), 1, False),
    ]
    assert shop.outside[0].where.endswith("conf.d/shop.conf line 3")
    assert layout.pid_file == "/run/nginx.pid" and layout.error_logs == ("logs/error.log",)


def test_a_changed_file_or_a_new_one_makes_the_layout_stale(home: Path) -> None:
    layout = scan(home / "nginx.conf", home / "sidecar.d")

    assert is_current(layout)
    (home / "conf.d" / "new.conf").write_text("upstream new { include sidecar.d/new.conf; }\n")
    assert not is_current(layout)
    layout = scan(home / "nginx.conf", home / "sidecar.d")
    assert "new" in layout.upstreams
    (home / "conf.d" / "new.conf").write_text("upstream newer { include sidecar.d/newer.conf; }\n")
    assert not is_current(layout)


def test_an_upstream_without_our_include_is_known_and_told_the_two_lines_to_do(home: Path) -> None:
    layout = scan(home / "nginx.conf", home / "sidecar.d")

    assert set(layout.unmoved) == {"untouched"}
    untouched, file = layout.unmoved["untouched"], home / "sidecar.d" / "untouched.conf"
    assert [out.address for out in untouched.outside] == [Address("10.0.0.8", 80)]
    assert untouched.to_do == (
        f"move the `server` lines of `upstream untouched` ({home}/conf.d/shop.conf line 6) to {file}; put in their place: include {file};"
    )


def test_a_configuration_without_any_upstream_is_told(home: Path) -> None:
    (home / "nginx.conf").write_text("http { server { listen 80; } }\n")

    with pytest.raises(BalancerError, match="has no upstream with servers"):
        scan(home / "nginx.conf", home / "sidecar.d")


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("upstream a { include sidecar.d/a.conf; } upstream a { include sidecar.d/b.conf; }", "stands twice"),
        ("upstream a { include sidecar.d/a.conf; include sidecar.d/b.conf; }", "make it one"),
        ("upstream 'a b' { include sidecar.d/a.conf; }", "cannot be driven"),
        ("include conf.d/shop.conf;", "include itself"),
        ("upstream a {", "line 1: the file ends"),
        ("}", "unexpected }"),
        ("include gone.conf;", "gone.conf does not exist"),
    ],
)
def test_what_cannot_be_driven_is_said(home: Path, text: str, why: str) -> None:
    (home / "conf.d" / "shop.conf").write_text(text)

    with pytest.raises(BalancerError, match=why):
        scan(home / "nginx.conf", home / "sidecar.d")


def test_one_file_for_two_upstreams_is_seen(home: Path) -> None:
    (home / "conf.d" / "shop.conf").write_text("upstream a { include sidecar.d/x.conf; } upstream b { include sidecar.d/x.conf; }")
    layout = scan(home / "nginx.conf", home / "sidecar.d")

    assert layout.upstreams["a"].shared_with == "b" and layout.upstreams["b"].shared_with == "a"


def test_our_reading_agrees_with_crossplane(home: Path) -> None:
    (home / "nginx.conf").write_text(MAIN.replace("content_by_lua_block", "location /y").split("  server {")[0] + "}\n" + SHOP)

    theirs = crossplane.parse(os.fspath(home / "nginx.conf"), single=True, check_ctx=False, check_args=False)
    assert theirs["status"] == "ok", json.dumps(theirs["errors"])
    assert _tree(statements((home / "nginx.conf").read_text())) == _their_tree(theirs["config"][0]["parsed"])


def _tree(found: tuple[Statement, ...]) -> list[object]:
    return [[s.name, list(s.args), s.line, None if s.block is None else _tree(s.block)] for s in found]


def _their_tree(parsed: list[dict[str, object]]) -> list[object]:
    return [[p["directive"], p["args"], p["line"], _their_tree(p["block"]) if "block" in p else None] for p in parsed]  # type: ignore[arg-type]


@settings(deadline=None)
@given(st.text(st.sampled_from(list("ab ;{}#\"'\\$\n")), max_size=80))
def test_any_text_is_a_tree_or_a_fault_with_its_line(text: str) -> None:
    try:
        statements(text)
    except SyntaxFault as fault:
        assert str(fault).startswith("line ")

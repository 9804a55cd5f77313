"""The include of one upstream: text to values and back."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lbplugins.nginx.servers import Include, IncludeFault, address_of, parse, render, set_operator, set_ours
from lbplugins.values import DRAIN, FULL, NONE, Address, Operator, Setting

PLAIN = """\
# rack 4, see the wiki
server 10.0.0.5:8080 max_fails=0;   # the old one
\tserver 10.0.0.6:8080  weight=3\tfail_timeout=5s ;
server [::1]:80 backup;

server "shop.example" down; # broken disk
keepalive 16;
"""


def ours(text: str, name: str, want: Setting) -> str:
    include = parse(text)
    return render(set_ours(include, include.named(name)[0], want))


def body(text: str) -> str:
    return text.partition("\n")[2]


def test_a_plain_file_is_the_operators_word() -> None:
    include = parse(PLAIN)

    assert [server.name for server in include.servers] == ["10.0.0.5:8080", "10.0.0.6:8080", "[::1]:80", "shop.example"]
    assert [server.nominal for server in include.servers] == [1, 3, 1, 1]
    assert [server.operator for server in include.servers] == [Operator.READY] * 3 + [Operator.MAINTENANCE]
    assert all(server.ours == Setting() for server in include.servers)
    assert include.servers[2].backup and include.servers[3].address == Address("shop.example", 80)
    assert include.edited == "" and render(include) == PLAIN


def test_an_ejection_is_one_token_and_one_comment() -> None:
    text = ours(PLAIN, "10.0.0.5:8080", Setting(NONE))

    assert text.startswith("# lb-sidecar sum=")
    assert body(text) == PLAIN.replace("max_fails=0;   # the old one", "max_fails=0 down;   # the old one  # lb-sidecar ejected")
    assert parse(text).edited == ""
    assert ours(text, "10.0.0.5:8080", Setting()) == PLAIN


def test_a_cut_makes_all_weights_a_hundredfold_and_its_end_restores_them() -> None:
    text = ours(PLAIN, "10.0.0.6:8080", Setting(FULL, 50))

    assert "server 10.0.0.5:8080 max_fails=0 weight=100;   # the old one  # lb-sidecar nominal=default\n" in text
    assert "\tserver 10.0.0.6:8080  weight=150\tfail_timeout=5s ;  # lb-sidecar nominal=3 cut=50\n" in text
    assert [server.nominal for server in parse(text).servers] == [1, 3, 1, 1]
    assert parse(text).named("10.0.0.6:8080")[0].ours == Setting(FULL, 50)
    assert ours(text, "10.0.0.6:8080", Setting()) == PLAIN


def test_an_operators_down_outlives_our_ejection_and_our_ready() -> None:
    out = ours(PLAIN, "shop.example", Setting(NONE))
    include = parse(out)

    server = include.named("shop.example")[0]
    assert "# lb-sidecar ejected held" in out and server.ejected and server.operator is Operator.MAINTENANCE
    with pytest.raises(IncludeFault, match="by hand"):
        set_operator(include, server, FULL)
    both = set_operator(include, server, NONE)
    assert set_operator(both, both.named("shop.example")[0], FULL) == include
    assert ours(out, "shop.example", Setting()) == PLAIN


def test_our_maintenance_and_our_ejection_are_undone_one_by_one() -> None:
    include = parse("server a:1;\nserver b:1;\n")
    include = set_operator(include, include.servers[0], NONE)
    include = parse(render(set_ours(include, include.servers[0], Setting(NONE))))

    assert include.servers[0].ejected and include.servers[0].maintenance
    back = render(set_ours(include, include.servers[0], Setting()))
    assert body(back) == "server a:1 down;  # lb-sidecar maintenance\nserver b:1;\n"
    again = parse(back)
    assert render(set_operator(again, again.servers[0], FULL)) == "server a:1;\nserver b:1;\n"


@pytest.mark.parametrize(
    ("edit", "word"),
    [
        (lambda text: text + "server 10.9.9.9:1;\n", "checksum"),
        (lambda text: text.replace("max_fails=0", "max_fails=9"), "checksum"),
        (lambda text: text.partition("\n")[2], "no checksum"),
        (lambda text: "\n" + text, "no checksum"),
    ],
)
def test_an_edit_by_hand_shows(edit: object, word: str) -> None:
    text = ours(PLAIN, "10.0.0.5:8080", Setting(NONE))

    assert callable(edit) and word in parse(edit(text)).edited


def test_a_down_taken_away_by_hand_ends_our_ejection() -> None:
    text = ours("server a:1;\nserver b:1;\n", "a:1", Setting(NONE)).replace("a:1 down;", "a:1;")

    assert parse(text).servers[0].ours == Setting() and not parse(text).servers[0].is_out
    assert render(parse(text)) == "server a:1;\nserver b:1;\n"


def test_our_comment_deleted_leaves_the_operators_down() -> None:
    text = ours("server a:1;\nserver b:1;\n", "a:1", Setting(NONE)).replace("  # lb-sidecar ejected", "")

    assert parse(text).servers[0].operator is Operator.MAINTENANCE and parse(text).servers[0].ours == Setting()


def test_a_weight_that_contradicts_its_mark_is_told() -> None:
    text = ours("server a:1 weight=2;\nserver b:1;\n", "a:1", Setting(FULL, 50)).replace(
        "weight=100;  # lb-sidecar nominal=2", "weight=7;  # lb-sidecar nominal=2"
    )

    assert "line 2" in parse(text).fault and "weight=100" in parse(text).fault


def test_the_last_server_in_rotation_stays() -> None:
    include = parse("server a:1;\nserver b:1 down;\n")

    with pytest.raises(IncludeFault, match="502"):
        set_ours(include, include.servers[0], Setting(NONE))
    assert set_ours(include, include.servers[0], Setting(NONE), others_serve=True).servers[0].ejected


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "no server"),
        ("# only a comment\n", "no server"),
        ("server a:1\n", "line 1: the file ends in the middle"),
        ("server a:1;\nserver b", "line 2"),
        ("server a:1; }\nserver { root /; ", "a block cannot stand here"),
        ("location / { }", "a block cannot stand here"),
        ("server a:1;\ninclude more.conf;\n", "line 2: an include cannot stand here"),
        ('server "a:1;\n', "line 1: a quote"),
        ("server a:1;\0", "NUL"),
        ("#" * (2 << 20), "larger"),
    ],
)
def test_what_is_no_list_of_servers_is_refused(text: str, why: str) -> None:
    with pytest.raises(IncludeFault, match=why):
        parse(text)


@pytest.mark.parametrize(
    ("text", "name", "why"),
    [
        ("server unix:/run/x.sock;\nserver b:1;\n", "unix:/run/x.sock", "unix socket"),
        ("server a:1; server b:1;\nserver c:1;\n", "a:1", "line of its own"),
        ("server a$b:1;\nserver b:1;\n", "a$b:1", "is not HOST"),
        ("server 300.1.1.1:1;\nserver b:1;\n", "300.1.1.1:1", "is not HOST"),
        ("server a:0;\nserver b:1;\n", "a:0", "is not HOST"),
    ],
)
def test_lines_that_cannot_bear_a_mark_are_left_alone(text: str, name: str, why: str) -> None:
    include = parse(text)

    with pytest.raises(IncludeFault, match=why):
        set_ours(include, include.named(name)[0], Setting(NONE))
    assert render(include) == text


@pytest.mark.parametrize("line", ["weight=2000000", '"weight=5"', "weight=1 weight=2", "weight=0"])
def test_weights_that_we_could_not_give_back_are_not_cut(line: str) -> None:
    include = parse(f"server a:1 {line};\nserver b:1;\n")

    assert not include.can_cut()
    with pytest.raises(IncludeFault, match="cannot be cut"):
        set_ours(include, include.servers[1], Setting(FULL, 50))


def test_only_what_the_contract_knows_is_asked() -> None:
    include = parse("server a:1;\nserver b:1;\n")

    for want in (Setting(DRAIN), Setting(FULL, 0), Setting(FULL, 101)):
        with pytest.raises(IncludeFault):
            set_ours(include, include.servers[0], want)
    with pytest.raises(IncludeFault, match="use maint"):
        set_operator(include, include.servers[0], DRAIN)


@pytest.mark.parametrize(
    ("name", "address"),
    [
        ("10.0.0.5:8080", Address("10.0.0.5", 8080)),
        ("10.0.0.5", Address("10.0.0.5", 80)),
        ("[::1]:81", Address("::1", 81)),
        ("[2001:db8::1]", Address("2001:db8::1", 80)),
        ("app_1.local:9", Address("app_1.local", 9)),
        ("unix:/x", None),
        ("10.0.0.5:8080\n", None),
        ("a b:1", None),
        ("a;b:1", None),
        ("[::g]:1", None),
        ("", None),
        (":80", None),
        ("a:65536", None),
        ("x" * 255 + ":1", None),
    ],
)
def test_addresses_are_parsed_not_believed(name: str, address: Address | None) -> None:
    assert address_of(name) == address


PARAMETERS = st.lists(
    st.sampled_from(
        ["max_fails=0", "fail_timeout=5s", "max_conns=9", "down", "backup", "weight=7", '"route=a b"', "'x;y'", "bogus", "resolve"]
    ),
    max_size=4,
    unique=True,
)
GAPS = st.sampled_from([" ", "  ", "\t", "\n  ", " # why; not }\n "])
TAILS = st.sampled_from(
    ["\n", "  \n", " # note\n", "\r\n", " # lb-sidecar\n", "  # lb-sidecar of old\n", "\n\n# c\n", " # a  # lb-sidecar x\r\n"]
)
BETWEEN = st.sampled_from(["", "", "\n", "# server x:1;\n", "keepalive 3;\n", "  "])


@st.composite
def files(draw: st.DrawFn) -> str:
    text = ""
    for number in range(draw(st.integers(2, 5))):
        gap = draw(GAPS)
        words = [f"10.0.0.{number + 1}:80{number}", *draw(PARAMETERS)]
        text += draw(BETWEEN) + "server " + gap.join(words) + draw(st.sampled_from(["", " "])) + ";" + draw(TAILS)
    return text


ACTS = st.lists(
    st.tuples(
        st.integers(0, 4),
        st.sampled_from([Setting(), Setting(NONE), Setting(FULL, 50), Setting(NONE, 1), Setting(FULL, 99), FULL, NONE]),
    ),
    max_size=8,
)


def _acted(include: Include, acts: list[tuple[int, Setting | object]]) -> Include:
    for number, want in acts:
        server = include.servers[number % len(include.servers)]
        try:
            changed = set_ours(include, server, want) if isinstance(want, Setting) else set_operator(include, server, want)  # type: ignore[arg-type]
        except IncludeFault:
            continue
        include = parse(render(changed))
        assert include == changed and not include.edited and not include.fault
    return include


@settings(deadline=None)
@given(files(), ACTS)
def test_what_is_written_reads_back_and_undoing_all_restores_every_byte(text: str, acts: list[tuple[int, Setting | object]]) -> None:
    start = parse(text)
    assert render(start) == text
    was_live = any(not server.is_out for server in start.servers)
    include = _acted(start, acts)

    assert [(s.name, s.nominal, s.down, s.tail) for s in include.servers] == [(s.name, s.nominal, s.down, s.tail) for s in start.servers]
    if was_live and not any(server.maintenance for server in include.servers):
        assert any(not server.is_out for server in include.servers)
    for number in range(len(include.servers)):
        include = set_ours(include, include.servers[number], Setting())
        if include.servers[number].maintenance:
            include = set_operator(include, include.servers[number], FULL)
    assert render(include) == text


@settings(deadline=None)
@given(st.text(st.sampled_from(list("server a:1;#{}\"'\\ \n\t$=down")), max_size=60))
def test_any_text_is_read_whole_or_refused(text: str) -> None:
    try:
        include = parse(text)
    except IncludeFault:
        return
    if not include.edited:
        assert render(include) == text


@settings(deadline=None)
@given(st.text(max_size=30))
def test_no_name_from_outside_gets_into_a_file(name: str) -> None:
    include = parse("server a:1;\nserver b:1;\n")

    assert not include.named(name)
    address = address_of(name)
    if address is not None:
        assert not set(str(address)) & set(" ;{}\"'\\#\n\r\t")

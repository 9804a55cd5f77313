"""HAProxy's tables, as its versions print them."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lbplugins.api import BalancerError
from lbplugins.haproxy.table import Server, algorithms, join, parse_old_workers, parse_process, parse_states, parse_stats
from lbplugins.values import Address, Counters, Ref

STATES = """1
# be_id be_name srv_id srv_name srv_addr srv_op_state srv_admin_state srv_uweight srv_iweight srv_check_state srv_agent_state \
srv_fqdn srv_port srv_agent_addr srv_agent_port
3 e 1 s1 127.0.0.1 2 0 50 100 0 22 - 28441 - 7001
3 e 2 v6 ::1 0 5 1 1 8 0 - 28442 - 0
3 e 3 unix - 2 0 1 1 0 0 - 0 - 0
3 e 4 lost - 0 32 1 1 0 0 nosuch.invalid 80 - 0
"""
STATS = """# pxname,svname,scur,status,weight,bck,econ,eresp,wretr,hrsp_5xx,req_tot,type,\
algo,agent_status,agent_health,agent_rise,last_agt,check_rise,
e,s1,7,UP,50,0,1,2,3,4,99,2,,* L7OK,1,1,"via agent : down (a, ""b""

c)",,
e,v6,0,MAINT,1,1,,,,,,2,,,,,,,
e,BACKEND,7,UP,51,0,1,2,3,4,99,1,roundrobin,,,,,,
"""


def servers() -> dict[Ref, Server]:
    return {server.ref: server for server in join(parse_states(STATES), parse_stats(STATS))}


def test_finds_columns_by_name() -> None:
    one = servers()[Ref("e", "s1")]

    assert (one.uweight, one.iweight, one.agent, one.agent_health, one.in_flight) == (50, 100, 22, 1, 7)
    assert one.counters == Counters(requests=99, connect_errors=1, response_errors=2, retries=3, status_5xx=4)
    assert one.agent_status == "L7OK", "the star only says that the next check is under way"


def test_quotes_may_hold_commas_quotes_and_empty_lines() -> None:
    assert servers()[Ref("e", "s1")].last_agent == 'via agent : down (a, "b"\n\nc)'


def test_absent_columns_are_none() -> None:
    v6 = servers()[Ref("e", "v6")]

    assert (v6.agent_health, v6.check_rise, v6.counters) == (None, None, Counters())
    assert v6.backup


def test_addresses() -> None:
    assert {ref.server: server.address for ref, server in servers().items()} == {
        "s1": Address("127.0.0.1", 28441), "v6": Address("::1", 28442), "unix": None, "lost": None,
    }  # fmt: skip


def test_a_server_that_show_stat_lacks_is_still_there() -> None:
    assert set(servers()) == {Ref("e", name) for name in ("s1", "v6", "unix", "lost")}


def test_algorithms_stand_on_the_backends_row() -> None:
    assert algorithms(parse_stats(STATS)) == {"e": "roundrobin"}


def test_an_unknown_backend_has_no_rows() -> None:
    assert parse_states("Can't find backend.") == []
    assert parse_stats("No such proxy.") == []


@pytest.mark.parametrize("text", ["", "2\n# be_name\n", "1\n", "1\n# be_name srv_name\na b c\n", "HTTP/1.1 400 Bad Request"])
def test_another_format_is_an_error_in_words(text: str) -> None:
    with pytest.raises(BalancerError, match="show servers state"):
        parse_states(text)


@pytest.mark.parametrize("text", ["", "pxname,svname\n", "# pxname,svname,\na,b\n"])
def test_another_stat_format_is_an_error_in_words(text: str) -> None:
    with pytest.raises(BalancerError, match="show stat"):
        parse_stats(text)


def test_a_number_that_is_none_names_the_server() -> None:
    with pytest.raises(BalancerError, match="e/s1"):
        list(join(parse_states(STATES.replace(" 50 100 ", " x 100 ")), []))


@settings(deadline=None)
@given(st.text() | st.text(alphabet='1# ,"\nabe'))
def test_any_text_is_rows_or_a_balancer_error(text: str) -> None:
    for parse in (parse_states, parse_stats, parse_process):
        try:
            parse(text)
        except BalancerError as error:
            assert str(error)


def test_process() -> None:
    assert parse_process("Name: HAProxy\nPid: 12\nDescription: a: b\nStart_time_sec: 1795514295\n") == (12, 1795514295)


def test_old_workers() -> None:
    text = (
        "#<PID>          <type>          <reloads>       <uptime>        <version>      \n6396      master          2 [failed: 0]\n"
        "# workers\n6402            worker          0               0d00h00m01s     2.6.12\n"
        "# old workers\n6398            worker          1         0d00h00m02s     2.6.12\n6390            worker          2         0d\n"
        "# programs\n7000            worker          0\n"
    )

    assert parse_old_workers(text) == (6398, 6390)
    assert parse_old_workers(text.replace("# old workers\n", "")) == ()

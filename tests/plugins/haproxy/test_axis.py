"""The decision table, row by row, on values alone."""

from __future__ import annotations

from dataclasses import replace

import pytest

from lbplugins.haproxy import axis
from lbplugins.haproxy.axis import Around, Lever, Order, Past, parse_note, read, write_note
from lbplugins.haproxy.table import Server
from lbplugins.haproxy.wire import Verb
from lbplugins.values import (
    DRAIN,
    DRAINING,
    FULL,
    MAINTENANCE,
    NONE,
    OPERATOR,
    READY,
    Address,
    Change,
    Counters,
    Operator,
    Ref,
    Seen,
    Serve,
    Setting,
)

REF = Ref("be", "s1")


def server(**columns: object) -> Server:
    return Server(REF, **{"uweight": 100, "iweight": 100, "address": Address("10.0.0.1", 80), **columns})  # type: ignore[arg-type]


AGENT_UP = server(agent=22, agent_status="L7OK", agent_health=1, agent_rise=1)
AGENT_DOWN = server(agent=22, agent_status="L7OK", agent_health=0, agent_rise=1, op=0, last_agent="via agent : down (lb-sidecar refused)")
UNANSWERED = server(agent=22, agent_status="L4CON", agent_health=1, agent_rise=1)
PUSHED_DOWN = server(agent=22, agent_status="L4CON", agent_health=0, agent_rise=1, op=0)
CHECKED = server(check=6, check_status="L7OK", check_health=3, check_rise=2)
CHECK_OFF_DOWN = server(check=2, op=0)
CHECK_OFF_UP = server(check=2, op=2)
PLAIN = server()
PLAIN_DOWN = server(op=0)
OUR_D = Past(Lever.CHECK, 100, check_off=True)


@pytest.mark.parametrize(
    ("case", "row", "past", "asks_us", "lever", "ours", "operator", "serving"),
    [
        ("A up", AGENT_UP, None, True, "A", FULL, READY, True),
        ("A down", AGENT_DOWN, None, True, "A", NONE, READY, False),
        ("A down stays readable in his maintenance", server(agent=22, agent_status="L7OK", agent_health=0, agent_rise=1, op=0, admin=1),
         None, True, "A", NONE, MAINTENANCE, False),
        ("A in his maintenance", server(agent=22, agent_status="L7OK", agent_health=1, agent_rise=1, op=0, admin=1),
         None, True, "A", FULL, MAINTENANCE, False),
        ("A, own check down",
         server(agent=22, agent_status="L7OK", agent_health=1, agent_rise=1, op=0, check=6, check_health=0, check_rise=2),
         None, True, "A", FULL, READY, False),
        ("B up", UNANSWERED, None, False, "B", FULL, READY, True),
        ("B down", PUSHED_DOWN, None, False, "B", NONE, READY, False),
        ("B from a state file: agent's health reads good", server(agent=22, agent_status="L4CON", agent_health=1, agent_rise=1, op=0),
         None, False, "B", NONE, READY, False),
        ("B, own check down", server(agent=22, agent_status="L4CON", agent_health=1, agent_rise=1, op=0, check=6),
         None, False, "B", FULL, READY, False),
        ("C answered by someone else", AGENT_UP, None, False, "C", FULL, READY, True),
        ("C held down by someone else", AGENT_DOWN, None, False, "C", FULL, READY, False),
        ("C who came after our push", AGENT_DOWN, Past(Lever.PUSHED, 100), False, "C", NONE, READY, False),
        ("C not polled yet", server(agent=22, agent_status="INI", agent_health=1, agent_rise=1), None, False, "C", FULL, READY, True),
        ("C agent switched off", server(agent=18), None, True, "C", FULL, READY, True),
        ("C tracks another", server(tracked="be/other", op=0), None, False, "C", FULL, READY, False),
        ("D up", CHECKED, None, False, "D", FULL, READY, True),
        ("D down by its own check", server(check=6, op=0, check_health=0, check_rise=2), None, False, "D", FULL, READY, False),
        ("D ejected by us", CHECK_OFF_DOWN, OUR_D, False, "D", NONE, READY, False),
        ("D ejected, then his maintenance", server(check=2, op=0, admin=1), OUR_D, False, "D", NONE, MAINTENANCE, False),
        ("D after his maintenance and ready: half undone", CHECK_OFF_UP, OUR_D, False, "D", DRAIN, READY, True),
        ("D in his maintenance, not ours", server(check=14, op=0, admin=1), None, False, "D", FULL, MAINTENANCE, False),
        ("E where his check is off", CHECK_OFF_UP, None, False, "E", FULL, READY, True),
        ("E where his check was off before we came", CHECK_OFF_DOWN, Past(Lever.HEALTH, 100), False, "E", NONE, READY, False),
        ("E up", PLAIN, None, False, "E", FULL, READY, True),
        ("E down", PLAIN_DOWN, Past(Lever.HEALTH, 100), False, "E", NONE, READY, False),
        ("E down and his drain", server(op=0, admin=8), Past(Lever.HEALTH, 100), False, "E", NONE, DRAINING, False),
        ("E in his maintenance", server(op=0, admin=1), Past(Lever.HEALTH, 100), False, "E", FULL, MAINTENANCE, False),
        ("his drain", server(admin=8), None, False, "E", FULL, DRAINING, False),
        ("inherited drain", server(admin=0x10), None, False, "E", FULL, DRAINING, False),
        ("inherited maintenance", server(op=0, admin=0x02), None, False, "E", FULL, MAINTENANCE, False),
        ("name unresolved", server(op=0, admin=0x20), None, False, "E", FULL, MAINTENANCE, False),
        ("4 alone is not maintenance", server(admin=4), None, False, "E", FULL, READY, True),
        ("disabled in the configuration", server(op=0, admin=5, check=8), None, False, "E", FULL, MAINTENANCE, False),
        ("starting", server(op=1), None, False, "E", FULL, READY, True),
        ("stopping", server(op=3), None, False, "E", FULL, READY, False),
        ("his weight 0", server(uweight=0), None, False, "E", FULL, READY, False),
    ],
    ids=lambda value: value if isinstance(value, str) and len(value) > 1 else "",
)  # fmt: skip
def test_reads_each_row_of_the_table(
    case: str, row: Server, past: Past | None, asks_us: bool, lever: str, ours: Serve, operator: Operator, serving: bool
) -> None:
    reading = read(row, past, Around(asks_us=asks_us))

    assert (reading.lever, reading.seen.ours.serve, reading.seen.operator, reading.seen.serving) == (lever, ours, operator, serving)


@pytest.mark.parametrize(
    ("row", "past", "around", "says"),
    [
        (PLAIN, None, Around(), None),
        (CHECKED, None, Around(), None),
        (server(admin=8), None, Around(), None),
        (server(op=0, admin=1), None, Around(), "operator's maintenance"),
        (server(check=14, op=0, admin=1), None, Around(), "operator's maintenance"),
        (server(agent=22, agent_status="L4CON", op=0, admin=1), None, Around(), None),
        (PLAIN, None, Around(level="user"), "`level user`"),
        (UNANSWERED, None, Around(level="operator"), "`level operator`"),
        (AGENT_UP, None, Around(level="user", asks_us=True), None),
        (AGENT_UP, None, Around(), "answered by someone else (L7OK)"),
        (server(agent=22, agent_status="INI"), None, Around(), "not run yet"),
        (server(agent=18), None, Around(asks_us=True), "`enable agent be/s1`"),
        (server(tracked="be/other"), None, Around(), "follows be/other"),
        (server(op=0, admin=0x20, address=None), None, Around(), "its name is not resolved now (a free slot of `server-template`"),
        (server(op=0, admin=0x21, address=None), None, Around(), "no address and port"),
        (server(address=None), None, Around(), "no address and port by which to judge it"),
        (server(agent=22, agent_status="L4CON", address=None), None, Around(), "no address and port"),
        (replace(PUSHED_DOWN, address=None), None, Around(), None),
    ],
)
def test_writable_says_why_not(row: Server, past: Past | None, around: Around, says: str | None) -> None:
    writable = read(row, past, around).seen.writable

    assert writable is None if says is None else says in (writable or "")


@pytest.mark.parametrize(
    ("row", "past", "asks_us", "out", "back"),
    [
        (AGENT_UP, None, True, [Verb.AGENT_DOWN], []),
        (AGENT_DOWN, None, True, [], [Verb.AGENT_UP]),
        (UNANSWERED, None, False, [Verb.AGENT_DOWN], []),
        (PUSHED_DOWN, None, False, [], [Verb.AGENT_UP]),
        (CHECKED, None, False, [Verb.DISABLE_HEALTH, Verb.HEALTH_DOWN], []),
        (CHECK_OFF_DOWN, OUR_D, False, [], [Verb.ENABLE_HEALTH]),
        (CHECK_OFF_UP, OUR_D, False, [Verb.DISABLE_HEALTH, Verb.HEALTH_DOWN], [Verb.ENABLE_HEALTH]),
        (CHECK_OFF_UP, None, False, [Verb.HEALTH_DOWN], []),
        (CHECK_OFF_DOWN, Past(Lever.HEALTH, 100), False, [], [Verb.HEALTH_UP]),
        (PLAIN, None, False, [Verb.HEALTH_DOWN], []),
        (PLAIN_DOWN, None, False, [], [Verb.HEALTH_UP]),
        (server(agent=18), None, False, [], []),
    ],
)
def test_plans_each_row_of_the_table(row: Server, past: Past | None, asks_us: bool, out: list[Verb], back: list[Verb]) -> None:
    reading = read(row, past, Around(asks_us=asks_us))

    assert axis.plan(reading, Change(REF, Setting(NONE)), "admin") == [Order(verb) for verb in out]
    assert axis.plan(reading, Change(REF, Setting()), "admin") == [Order(verb) for verb in back]


def test_our_axis_never_writes_the_admin_axis_whatever_the_state() -> None:
    state = {Verb.STATE_READY, Verb.STATE_DRAIN, Verb.STATE_MAINT}
    for op in range(4):
        for admin in (0, 1, 2, 4, 5, 8, 9, 0x10, 0x20):
            for check in (0, 2, 6, 8, 10, 14):
                for agent in (0, 18, 22, 30):
                    row = server(op=op, admin=admin, check=check, agent=agent, agent_status="L4CON", agent_health=op > 0, agent_rise=1)
                    for past in (None, OUR_D, Past(Lever.HEALTH, 200, 100)):
                        reading = read(row, past, Around())
                        for want in (Setting(), Setting(NONE), Setting(FULL, 50)):
                            assert not state & {order.verb for order in axis.plan(reading, Change(REF, want), "admin")}


@pytest.mark.parametrize(
    ("admin", "want", "sent", "refused"),
    [
        (0, FULL, [], ""),
        (1, FULL, [Verb.STATE_READY], ""),
        (8, FULL, [Verb.STATE_READY], ""),
        (2, FULL, None, "admin bits 0x2"),
        (5, FULL, None, "admin bits 0x5"),
        (0x10, FULL, None, "admin bits 0x10"),
        (0x20, FULL, None, "admin bits 0x20"),
        (4, FULL, [], ""),
        (0, DRAIN, [Verb.STATE_DRAIN], ""),
        (1, DRAIN, [Verb.STATE_DRAIN], ""),
        (2, DRAIN, None, "inherited"),
        (0, NONE, [Verb.STATE_MAINT], ""),
        (1, NONE, [], ""),
        (8, NONE, [Verb.STATE_MAINT], ""),
    ],
)
def test_operators_axis_sends_ready_only_over_what_a_command_of_ours_leaves(
    admin: int, want: Serve, sent: list[Verb] | None, refused: str
) -> None:
    reading = read(server(admin=admin), None, Around())
    change = Change(REF, Setting(want), on=OPERATOR)

    reason = axis.why_refuse(reading, change)

    assert refused in reason and bool(reason) == bool(refused)
    if sent is not None:
        assert axis.plan(reading, change, "admin") == [Order(verb) for verb in sent]


@pytest.mark.parametrize(
    ("now", "past", "serve", "weight", "pct"),
    [
        (100, None, FULL, 100, 100),
        (50, None, FULL, 50, 100),
        (50, Past(Lever.HEALTH, 100), FULL, 100, 50),  # journaled before the cut
        (50, Past(Lever.HEALTH, 100), NONE, 50, 100),  # journaled before an ejection: an operator's edit since
        (50, Past(Lever.HEALTH, 100, cut=25), NONE, 100, 50),
        (50, Past(Lever.HEALTH, 100, cut=50, remembered=True), FULL, 100, 50),
        (30, Past(Lever.HEALTH, 100, cut=50, remembered=True), FULL, 30, 100),  # the operator's since
        (120, Past(Lever.HEALTH, 100), FULL, 120, 100),
        (0, Past(Lever.HEALTH, 100), FULL, 0, 100),
        (1, Past(Lever.HEALTH, 3, cut=1), FULL, 3, 34),
    ],
)
def test_tells_our_cut_from_the_operators_weight(now: int, past: Past | None, serve: Serve, weight: int, pct: int) -> None:
    assert axis.weights(server(uweight=now), past, serve) == (weight, pct)


def test_a_percent_comes_back_as_the_same_absolute_weight() -> None:
    for weight in range(1, 257):
        for pct in range(1, 101):
            seen = Seen(weight=weight, grain_pct=axis.grain(weight))
            cut = axis.target(seen, Setting(FULL, pct))
            assert 1 <= cut <= weight
            shown, back = axis.weights(server(uweight=cut), Past(Lever.HEALTH, weight, cut, remembered=True), FULL)
            assert shown == weight and axis.target(seen, Setting(FULL, back)) == cut
            assert weight == 1 or abs(back - pct) <= seen.grain_pct


def test_never_writes_over_an_operators_zero() -> None:
    reading = read(server(uweight=0), None, Around())

    assert axis.plan(reading, Change(REF, Setting(NONE)), "admin") == [Order(Verb.HEALTH_DOWN)]


def test_weight_comes_before_the_return_and_after_the_ejection() -> None:
    past = Past(Lever.HEALTH, 100, cut=50, remembered=True)

    assert axis.plan(read(server(op=0), None, Around()), Change(REF, Setting(FULL, 25)), "admin") == [
        Order(Verb.SET_WEIGHT, 25), Order(Verb.HEALTH_UP),
    ]  # fmt: skip
    assert axis.plan(read(server(uweight=50), past, Around()), Change(REF, Setting(NONE)), "admin") == [
        Order(Verb.HEALTH_DOWN), Order(Verb.SET_WEIGHT, 100),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("takes_weights", "uweight", "grain"), [(True, 100, 1), (True, 3, 34), (True, 1, 100), (True, 0, 100), (False, 100, 100)]
)
def test_a_cut_finer_than_the_grain_is_refused(takes_weights: bool, uweight: int, grain: int) -> None:
    reading = read(server(uweight=uweight), None, Around(takes_weights=takes_weights))

    assert reading.seen.grain_pct == grain
    assert bool(axis.why_refuse(reading, Change(REF, Setting(FULL, 50)))) == (grain == 100)


@pytest.mark.parametrize("text", ["D w=100", "E w=256 cut=1", "A w=0", "B w=3 cut=2"])
def test_a_note_survives_its_journal(text: str) -> None:
    past = parse_note(text)

    assert past is not None
    assert write_note(past.lever, past.weight, past.weight if past.cut is None else past.cut) == text


@pytest.mark.parametrize("text", ["", "w=100", "F w=1", "D w=100\n", "D w=-1", "D  w=1", "D w=1 cut=", "x" * 10_000])
def test_a_foreign_note_is_no_past(text: str) -> None:
    assert parse_note(text) is None


def test_remarks_say_what_a_person_should_know() -> None:
    down = read(server(check=6, op=0, check_health=0, check_rise=2, check_status="L4CON", last_check="Connection\nrefused"), None, Around())

    assert down.seen.remark == "own check DOWN (L4CON: Connection refused)"
    assert "not by us" in read(CHECK_OFF_UP, None, Around()).seen.remark
    assert "undone" in read(CHECK_OFF_UP, OUR_D, Around()).seen.remark
    assert "journal does not know" in read(PLAIN_DOWN, None, Around()).seen.remark


def test_an_idle_reserve_is_neither_out_nor_known_to_serve() -> None:
    assert read(PLAIN, None, Around(idle_reserve=True)).seen.serving is None


def test_several_processes_are_one_server_at_its_most_careful() -> None:
    up, out = Seen(serving=True, in_flight=2, counters=Counters(requests=3)), Seen(Setting(NONE), serving=False, in_flight=1)

    both = axis.merge([up, out])

    assert both.ours not in (Setting(), Setting(NONE)), "the next change must be written whichever it is"
    assert (both.serving, both.in_flight, both.counters) == (False, 3, Counters(requests=3))
    assert axis.merge([Seen(), Seen(operator=MAINTENANCE), Seen(operator=DRAINING)]).operator is MAINTENANCE
    assert axis.merge([Seen(), Seen(writable="no")]).writable == "no"
    differing = axis.merge([Seen(weight=100), Seen(weight=50)])
    assert differing.grain_pct == 100 and "differs" in differing.remark


@pytest.mark.parametrize(
    ("row", "want", "orders"),
    [
        (server(check=10, op=0, admin=1), OUT := Setting(NONE), [Order(Verb.ENABLE_HEALTH)]),
        (server(check=14, op=0, admin=1), OUT, []),
        (CHECK_OFF_DOWN, OUT, []),
        (server(op=0, admin=1), OUT, []),
        (server(check=10, op=0, admin=1), Setting(), []),
    ],
)
def test_a_check_switched_off_under_his_maintenance_is_switched_on_at_once(row: Server, want: Setting, orders: list[Order]) -> None:
    past = OUR_D if row.check else None

    assert axis.mend(read(row, past, Around()), Change(REF, want)) == orders


def test_a_check_stuck_in_pause_is_told() -> None:
    assert "stuck in pause" in read(server(check=14), None, Around()).seen.remark
    assert "stuck" not in read(server(check=14, op=0, admin=1), None, Around()).seen.remark


@pytest.mark.parametrize(
    ("check", "op", "admin", "shaky", "shaken"),
    [(3, 0, 0, True, False), (2, 0, 0, False, False), (2, 2, 0, False, True), (2, 2, 8, False, False), (6, 2, 0, False, False)],
)
def test_a_check_under_way_may_undo_us(check: int, op: int, admin: int, shaky: bool, shaken: bool) -> None:
    after = read(server(check=check, op=op, admin=admin), OUR_D, Around())

    assert (axis.is_shaky(after, Change(REF, OUT)), axis.is_shaken(after, Change(REF, OUT))) == (shaky, shaken)
    assert not axis.is_shaky(after, Change(REF, Setting())) and not axis.is_shaken(after, Change(REF, Setting()))

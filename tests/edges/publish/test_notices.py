"""Notices: what is worth one, when it is told, how often, and how it ends by itself."""

from __future__ import annotations

import pytest

from sidecar.core.samples import Sample
from sidecar.publish.notices import BURST, GROUP_S, OUT, Book, Condition, Notice, Severity, condition
from tests.core.lab import hangs, refused
from tests.edges.publish.scene import Scene

SHOP = {"service": "shop"}


def gauge(name: str, value: float, /, **labels: str) -> Sample:
    return Sample(f"lbsidecar_{name}", "gauge", value, tuple(labels.items()), "", "X.")


def out(address: str, service: str = "shop") -> Condition:
    return Condition(service, address, OUT)


def failing_open(service: str = "shop") -> Condition:
    found = condition(gauge("service_failing_open", 1.0, service=service))
    assert found is not None
    return found


def told(messages: list[list[Notice]]) -> list[list[tuple[str, bool]]]:
    return [[(notice.condition.key, notice.is_over) for notice in group] for group in messages]


@pytest.mark.parametrize(
    ("sample", "key", "severity"),
    [
        (gauge("instance_judgement", 1.0, **SHOP, address="10.0.0.5:80", judgement="ejected"), "lb-sidecar/shop/10.0.0.5:80/out", "note"),
        (gauge("service_in_rotation", 0.0, **SHOP), "lb-sidecar/shop/-/none_left", "page"),
        (gauge("service_failing_open", 1.0, **SHOP), "lb-sidecar/shop/-/failing_open", "page"),
        (gauge("holds", 2.0, **SHOP, name="min_healthy"), "lb-sidecar/shop/-/min_healthy", "page"),
        (gauge("holds", 1.0, **SHOP, name="no_witness"), "lb-sidecar/shop/-/no_witness", "warning"),
        (gauge("balancer_drift_age_seconds", 31.0, balancer="edge"), "lb-sidecar/-/edge/drift", "page"),
        (gauge("balancer_up", 0.0, balancer="edge"), "lb-sidecar/-/edge/balancer", "warning"),
        (gauge("blind", 1.0), "lb-sidecar/-/-/blind", "page"),
        (gauge("journal_up", 0.0), "lb-sidecar/-/-/journal", "page"),
    ],
)
def test_what_is_worth_a_notice(sample: Sample, key: str, severity: str) -> None:
    found = condition(sample)

    assert found is not None
    assert (found.key, found.cause.severity.word) == (key, severity)


@pytest.mark.parametrize(
    "sample",
    [
        gauge("instance_judgement", 0.0, **SHOP, address="10.0.0.5:80", judgement="ejected"),
        gauge("instance_judgement", 1.0, **SHOP, address="10.0.0.5:80", judgement="healthy"),
        gauge("service_in_rotation", 1.0, **SHOP),
        gauge("holds", 2.0, **SHOP, name="velocity"),
        gauge("balancer_drift_age_seconds", 29.0, balancer="edge"),
        gauge("blind", 0.0),
        gauge("uptime_seconds", 1.0),
    ],
)
def test_what_is_not(sample: Sample) -> None:
    assert condition(sample) is None


def test_a_real_ejection_is_worth_a_note_and_all_failing_alike_a_warning() -> None:
    scene = Scene(4)
    scene.run(30.0)
    scene.answer(1, refused())
    scene.run(3.0)
    one = {each.key for each in map(condition, scene.samples()) if each is not None}
    for i in (2, 3, 4):
        scene.answer(i, hangs())
    scene.run(20.0)
    all_of_them = {each.key for each in map(condition, scene.samples()) if each is not None}

    assert one == {"lb-sidecar/shop/10.0.0.1:80/out"}
    assert "lb-sidecar/shop/-/no_witness" in all_of_them


def test_notes_of_one_service_come_together_after_half_a_minute() -> None:
    book = Book()

    assert book.turn(1000.0, [out("a:1")], {}) == []
    assert book.turn(1010.0, [out("a:1"), out("b:1"), out("c:1", "cart")], {}) == []
    assert told(book.turn(1000.0 + GROUP_S, [out("a:1"), out("b:1"), out("c:1", "cart")], {})) == [
        [("lb-sidecar/shop/a:1/out", False), ("lb-sidecar/shop/b:1/out", False)]
    ]
    assert told(book.turn(1010.0 + GROUP_S, [out("a:1"), out("b:1"), out("c:1", "cart")], {})) == [[("lb-sidecar/cart/c:1/out", False)]]
    assert book.turn(9000.0, [out("a:1"), out("b:1"), out("c:1", "cart")], {}) == []


def test_a_page_waits_for_nobody_and_takes_the_others_along() -> None:
    book = Book()
    book.turn(1000.0, [out("a:1")], {})

    assert told(book.turn(1005.0, [out("a:1"), failing_open()], {})) == [
        [("lb-sidecar/shop/-/failing_open", False), ("lb-sidecar/shop/a:1/out", False)]
    ]


def test_what_is_over_before_it_was_told_is_not_told() -> None:
    book = Book()
    book.turn(1000.0, [out("a:1")], {})
    book.turn(1010.0, [], {})

    assert book.turn(1040.0, [], {}) == []
    assert book.turn(1090.0, [], {}) == []


def test_what_was_told_ends_by_itself_with_the_same_key() -> None:
    book = Book()
    assert told(book.turn(1000.0, [failing_open()], {})) == [[("lb-sidecar/shop/-/failing_open", False)]]
    assert book.turn(1005.0, [failing_open()], {}) == []

    assert told(book.turn(1010.0, [], {})) == [[("lb-sidecar/shop/-/failing_open", True)]]
    assert book.turn(1015.0, [], {}) == []


def test_what_comes_back_after_its_end_was_due_is_told_again() -> None:
    book = Book()
    book.turn(1000.0, [failing_open()], {})
    book.turn(1010.0, [], {})

    assert told(book.turn(1020.0, [failing_open()], {})) == [[("lb-sidecar/shop/-/failing_open", False)]]


def test_what_holds_too_shortly_is_not_told() -> None:
    book = Book()
    blind = condition(gauge("blind", 1.0))
    assert blind is not None

    assert book.turn(1000.0, [blind], {}) == []
    assert book.turn(1005.0, [blind], {}) == []
    assert told(book.turn(1010.0, [blind], {})) == [[("lb-sidecar/-/-/blind", False)]]


def test_a_storm_is_told_in_a_few_messages_and_nothing_of_it_is_lost() -> None:
    book = Book()
    storm = [failing_open(f"s{i}") for i in range(40)]
    found: list[str] = []
    sizes = []

    for second in range(0, 600, 5):
        messages = book.turn(1000.0 + second, storm, {})
        sizes.append(len(messages))
        found += [key for group in told(messages) for key, _ in group]

    assert sizes[0] == BURST
    assert max(sizes[1:]) <= 1
    assert sorted(found) == sorted(each.key for each in storm)


def test_the_decision_log_has_better_words() -> None:
    book = Book()
    book.turn(1000.0, [out("a:1")], {})
    words = {"lb-sidecar/shop/a:1/out": "shop/a:1 ejected: refused 4 times"}
    book = Book()
    book.turn(1000.0, [out("a:1")], words)
    ((notice,),) = book.turn(1030.0, [out("a:1")], words)

    assert notice.sentence == "shop/a:1 ejected: refused 4 times"
    assert notice.undo == "lb-sidecar ready shop/a:1"
    assert notice.severity is Severity.NOTE

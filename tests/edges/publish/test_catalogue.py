"""docs/metrics.md names every metric, as the code has it, and what prometheus-client reads is what we wrote."""

from __future__ import annotations

import math

from prometheus_client.openmetrics.parser import text_string_to_metric_families as open_metrics
from prometheus_client.parser import text_string_to_metric_families as text_format

from sidecar.publish.prometheus import Format, render
from tests.deploy.test_pages import metric_names
from tests.edges.publish.catalogue import DOCS, everything, page
from tests.edges.publish.scene import numbers


def test_the_page_is_up_to_date() -> None:
    text = DOCS.read_text(encoding="utf-8")

    assert text == page(text), "run: python -m tests.edges.publish.catalogue"


def test_nothing_is_left_out() -> None:
    assert {each.name.removeprefix("lbsidecar_") for each in everything()} == metric_names()


def test_every_metric_has_one_kind_one_unit_and_one_help() -> None:
    found: dict[str, set[tuple[str, str, str, int]]] = {}
    for each in everything():
        found.setdefault(each.name, set()).add((each.kind, each.unit, each.help, len(each.labels)))

    assert {name: kinds for name, kinds in found.items() if len(kinds) > 1} == {}
    for name, ((kind, unit, text, _),) in found.items():
        assert name.startswith("lbsidecar_")
        assert name.endswith("_total") == (kind == "counter")
        assert not unit or name.removesuffix("_total").endswith(f"_{unit}")
        assert text.endswith(".")


def test_a_strict_reader_reads_both_text_forms_alike() -> None:
    samples = everything()
    wanted = numbers(samples)

    for form, parse in ((Format.TEXT, text_format), (Format.OPENMETRICS, open_metrics)):
        families = list(parse(render(samples, form).decode()))
        found = {(row.name, tuple(row.labels.items())): row.value for family in families for row in family.samples}
        assert all(family.documentation for family in families)
        assert {key: found[key] for key in wanted} == wanted
        rows = [key for key in found if key[0].startswith("lbsidecar_response_seconds_bucket")]
        assert len([key for key in rows if ("le", "+Inf") in key[1]]) == 2
        assert not any(math.isnan(value) for value in found.values())

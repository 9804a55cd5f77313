"""What dashboards/ ships: made by its maker, understood by the real programs, and every expression finds something."""

from __future__ import annotations

import json
import re
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from dashboards.make import ALERTS, FOLDER, PANELS, Alert, dashboard, files, saved_objects, template
from sidecar.publish import ecs
from sidecar.publish.feed import utc
from sidecar.publish.graphite import lines
from sidecar.publish.prometheus import Format, render
from tests.edges.publish.catalogue import everything
from tests.edges.publish.programs import Graphite, OpenSearch, Prometheus, free_port, get_json, needed, wait_for

STORES = ("prometheus", "graphite")
OURS = set(re.findall(r"lbsidecar_[a-z_]+", (FOLDER.parent / "docs" / "metrics.md").read_text(encoding="utf-8")))


def test_the_files_are_what_their_maker_makes() -> None:
    for name, text in files().items():
        assert (FOLDER / name).read_text(encoding="utf-8") == text, "run: python -m dashboards.make"


@pytest.mark.parametrize("store", STORES)
def test_a_dashboard_has_what_grafana_asks_of_one(store: str) -> None:
    found = dashboard(store)

    assert found["schemaVersion"] == 39 and found["title"] and found["__inputs"][0]["pluginId"] == store
    assert len({panel["id"] for panel in found["panels"]}) == len(found["panels"]) == len(PANELS)
    places = {(panel["gridPos"]["x"], panel["gridPos"]["y"]) for panel in found["panels"]}
    assert len(places) == len(PANELS), "no panel lies on another"
    for panel in found["panels"]:
        assert panel["datasource"] == {"type": store, "uid": "${DS}"}
        assert all(target["expr" if store == "prometheus" else "target"] for target in panel["targets"])


def test_alerts_and_panels_name_metrics_that_are_documented() -> None:
    expressions = [query.prometheus for panel in PANELS for query in panel.queries] + [alert.expression for alert in ALERTS]

    named = {name.removesuffix("_bucket").removesuffix("_count") for text in expressions for name in re.findall(r"lbsidecar_[a-z_]+", text)}
    assert named and named <= OURS


def test_kibanas_objects_refer_to_one_another_and_to_nothing_else() -> None:
    objects = {(each["type"], each["id"]): each for each in saved_objects()}

    for each in objects.values():
        assert {"type", "id", "attributes", "references"} <= set(each)
        assert all((reference["type"], reference["id"]) in objects for reference in each["references"])
        source = json.loads(each["attributes"].get("kibanaSavedObjectMeta", {}).get("searchSourceJSON", "{}"))
        names = {reference["name"] for reference in each["references"]}
        assert "indexRefName" not in source or source["indexRefName"] in names
    (board,) = (each for each in objects.values() if each["type"] == "dashboard")
    for panel in json.loads(board["attributes"]["panelsJSON"]):
        assert f"{panel['panelIndex']}:{panel['panelRefName']}" in {reference["name"] for reference in board["references"]}


# ---- the real programs ----


class _Page(BaseHTTPRequestHandler):
    body = b""

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Type", Format.TEXT.value)
        self.end_headers()
        self.wfile.write(self.body)

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture(scope="module")
def prometheus(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prometheus]:
    """It has scraped everything there is, a few times."""
    _Page.body = render(everything())
    server = ThreadingHTTPServer(("127.0.0.1", free_port()), _Page)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    found = Prometheus(tmp_path_factory.mktemp("prometheus"), {"lb-sidecar": (server.server_address[1], "/metrics")})
    with found.run():
        wait_for(lambda: (found.value("count_over_time(up[1m])") or 0) >= 3)
        yield found
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.mark.real
def test_every_expression_finds_something_in_a_real_prometheus(prometheus: Prometheus) -> None:
    for panel in PANELS:
        for query in panel.queries:
            expression = query.prometheus.replace("$service", ".*").replace("$__rate_interval", "1m")

            assert prometheus.query(expression), (panel.title, expression)


@pytest.mark.real
def test_every_target_finds_something_in_a_real_graphite(tmp_path: Path) -> None:
    graphite, samples = Graphite(tmp_path), everything()
    for name in ("storage-schemas.conf", "storage-aggregation.conf"):
        (tmp_path / "conf" / name).write_text((FOLDER / name).read_text())
    with graphite.web(), graphite.carbon(), socket.create_connection(("127.0.0.1", graphite.line_port)) as carbon:
        for ago in (40, 30, 20, 10):
            carbon.sendall(b"".join(lines(samples, "lbsidecar", time.time() - ago)))
        for panel in PANELS:
            for query in panel.queries:
                target = query.graphite.replace("$prefix", "lbsidecar").replace("$service", "*")
                found = _waited(graphite, target)
                assert found, (panel.title, target)
                if "summarize" not in target:
                    assert len(found[0]["datapoints"]) >= 2, target


def _waited(graphite: Graphite, target: str) -> list[dict[str, Any]]:
    deadline = time.monotonic() + 30
    while not (found := _shown(graphite, target)) and time.monotonic() < deadline:
        time.sleep(0.2)
    return found


def _shown(graphite: Graphite, target: str) -> list[dict[str, Any]]:
    """Series with points."""
    found = get_json(f"{graphite.url}/render", target=target, format="json", noNullPoints="true", **{"from": "-600s"}) or []
    return [series for series in found if series["datapoints"]]


WHAT_FIRES: dict[str, tuple[dict[str, str], dict[str, str]]] = {
    "LbSidecarAbsent": ({"something_else": "1x40"}, {}),
    "ServiceFailingOpen": ({'lbsidecar_service_failing_open{service="shop"}': "1x40"}, {"service": "shop"}),
    "NoInstanceLeft": (
        {'lbsidecar_service_in_rotation{service="shop"}': "0x40", 'lbsidecar_service_counted{service="shop"}': "4x40"},
        {"service": "shop"},
    ),
    "FloorReached": ({'lbsidecar_holds{service="shop",name="min_healthy"}': "2x40"}, {"service": "shop", "name": "min_healthy"}),
    "SidecarBlind": ({"lbsidecar_blind": "0x40", "lbsidecar_journal_up": "0x40"}, {}),
    "BalancerDoesNotFollow": ({'lbsidecar_balancer_drift_age_seconds{balancer="edge"}': "31x40"}, {"balancer": "edge"}),
    "BalancerAway": ({'lbsidecar_balancer_up{balancer="edge"}': "0x40"}, {"balancer": "edge"}),
    "NoWitness": ({'lbsidecar_holds{service="shop",name="no_witness"}': "4x40"}, {"service": "shop", "name": "no_witness"}),
    "InstanceNotAsked": (
        {'lbsidecar_instance_last_probe_age_seconds{service="shop",address="10.0.0.1:80"}': "61x40"},
        {"service": "shop", "address": "10.0.0.1:80"},
    ),
    "SidecarLate": ({"lbsidecar_loop_lag_seconds": "0.2x40"}, {}),
    "SinkLoses": ({'lbsidecar_sink_dropped_total{sink="graphite"}': "0+5x40"}, {"sink": "graphite"}),
    "InstanceOut": (
        {'lbsidecar_instance_judgement{service="shop",address="10.0.0.1:80",judgement="ejected"}': "1x40"},
        {"service": "shop", "address": "10.0.0.1:80", "judgement": "ejected"},
    ),
}
"""By alert: series that let it fire, as promtool writes them, and the labels that it then has."""
WELL = {
    "lbsidecar_build_info": "1x40",
    'lbsidecar_service_failing_open{service="shop"}': "0x40",
    'lbsidecar_service_in_rotation{service="shop"}': "4x40",
    'lbsidecar_service_counted{service="shop"}': "4x40",
    "lbsidecar_blind": "0x40",
    "lbsidecar_journal_up": "1x40",
    'lbsidecar_balancer_drift_age_seconds{balancer="edge"}': "2x40",
    'lbsidecar_balancer_up{balancer="edge"}': "1x40",
    'lbsidecar_instance_last_probe_age_seconds{service="shop",address="10.0.0.1:80"}': "1x40",
    "lbsidecar_loop_lag_seconds": "0.002x40",
    'lbsidecar_sink_dropped_total{sink="graphite"}': "7x40",
    'lbsidecar_instance_judgement{service="shop",address="10.0.0.1:80",judgement="ejected"}': "0x40",
}


def test_every_alert_fires_when_it_should_and_none_when_all_is_well(tmp_path: Path) -> None:
    assert set(WHAT_FIRES) == {alert.name for alert in ALERTS}
    cases = [_case(alert, *WHAT_FIRES[alert.name]) for alert in ALERTS]
    calm = [{"alertname": alert.name, "eval_time": "30m", "exp_alerts": []} for alert in ALERTS]
    cases.append({"interval": "1m", "input_series": _series(WELL), "alert_rule_test": calm})
    test = {"rule_files": [str(FOLDER / "prometheus-rules.yaml")], "evaluation_interval": "30s", "tests": cases}
    (tmp_path / "tests.yaml").write_text(json.dumps(test))

    told = subprocess.run([needed("promtool"), "test", "rules", str(tmp_path / "tests.yaml")], capture_output=True, text=True, check=False)

    assert told.returncode == 0, told.stdout + told.stderr


def _case(alert: Alert, series: dict[str, str], labels: dict[str, str]) -> dict[str, Any]:
    value = next(iter(series.values())).split("x")[0].split("+")[0]
    summary = re.sub(r"\{\{ \$labels\.(\w+) \}\}", lambda found: labels[found[1]], alert.summary).replace("{{ $value }}", value)
    wanted = {"exp_labels": {"severity": alert.severity, **labels}, "exp_annotations": {"summary": summary}}
    fires = {"alertname": alert.name, "eval_time": "30m", "exp_alerts": [wanted]}
    rests = {"alertname": alert.name, "eval_time": "0m", "exp_alerts": []}
    return {"interval": "1m", "input_series": _series(series), "alert_rule_test": [rests, fires]}


def _series(found: dict[str, str]) -> list[dict[str, str]]:
    return [{"series": name, "values": values if "+" in values else values.replace("x", "+0x")} for name, values in found.items()]


@pytest.mark.real
def test_a_real_engine_takes_our_documents_into_the_template(tmp_path: Path) -> None:
    engine = OpenSearch(tmp_path)
    samples = everything()
    with engine.run():
        engine.put("_index_template/lbsidecar", template())
        for place, document in enumerate(each for each in ecs.numbers(samples, "lb-1", utc(time.time())) if each is not None):
            engine.put(f"logs-lbsidecar-default/_doc/{place}?refresh=true", document)
        asked = {
            "size": 0,
            "aggs": {"worst": {"max": {"field": "lbsidecar.latency.probe.p50"}}},
            "query": {"term": {"service.name": "shop"}},
        }
        found = engine.search("logs-lbsidecar-default", asked)

    assert found["hits"]["total"]["value"] == 6
    assert found["aggregations"]["worst"]["value"] == pytest.approx(0.0005, rel=0.0055)

"""Writes the files of this folder: `python -m dashboards.make`. One list of panels makes the dashboards for Prometheus and for Graphite."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

FOLDER = Path(__file__).parent
WIDTH, HEIGHT = 12, 8
"""Of a panel, in Grafana's grid of 24 columns."""
RANGE = "$__rate_interval"


class Query(NamedTuple):
    """What a panel shows, in the words of each store, and what a line of it is called."""

    prometheus: str
    graphite: str
    legend: str


class Panel(NamedTuple):
    title: str
    says: str
    unit: str
    queries: tuple[Query, ...]


_S = 'service=~"$service"'
_G = "$prefix.$service"
PANELS = (
    Panel(
        "In rotation, sound, known",
        "How many instances get traffic, answer well, and exist. Failing open shows as 1.",
        "short",
        (
            Query(f"sum by (service) (lbsidecar_service_instances{{{_S}}})", f"aliasByNode({_G}.all.instances, 1)", "{{service}} known"),
            Query(f"sum by (service) (lbsidecar_service_in_rotation{{{_S}}})", f"aliasByNode({_G}.all.in_rotation, 1)", "{{service}} in"),
            Query(f"sum by (service) (lbsidecar_service_sound{{{_S}}})", f"aliasByNode({_G}.all.sound, 1)", "{{service}} sound"),
            Query(
                f"max by (service) (lbsidecar_service_failing_open{{{_S}}})", f"aliasByNode({_G}.all.failing_open, 1)", "{{service}} open"
            ),
        ),
    ),
    Panel(
        "Out by us",
        "1 = ejected. Why stands on the sidecar's own page and in its decision log.",
        "short",
        (
            Query(
                f'lbsidecar_instance_judgement{{{_S},judgement="ejected"}}',
                f"aliasByNode({_G}.*.judgement.ejected, 1, 2)",
                "{{service}} {{address}}",
            ),
        ),
    ),
    Panel(
        "p99 of a service, from histograms",
        "Of all sidecars together: histograms merge, percentiles do not.",
        "s",
        (
            Query(
                f"histogram_quantile(0.99, sum by (service, source, le) (rate(lbsidecar_response_seconds_bucket{{{_S}}}[{RANGE}])))",
                f"aliasByNode({_G}.all.latency.*.p99, 1, 4)",
                "{{service}} {{source}}",
            ),
        ),
    ),
    Panel(
        "p50 of each instance",
        "Of the last minute, absent while there are too few answers.",
        "s",
        (
            Query(
                f'lbsidecar_instance_latency_seconds{{{_S},quantile="0.5"}}',
                f"aliasByNode(exclude({_G}.*.latency.*.p50, '[.]all[.]'), 1, 2, 4)",
                "{{service}} {{address}} {{source}}",
            ),
        ),
    ),
    Panel(
        "Answers a second of each instance",
        "Good answers, by whose measurement.",
        "reqps",
        (
            Query(
                f"rate(lbsidecar_instance_latency_seconds_count{{{_S}}}[{RANGE}])",
                f"aliasByNode(perSecond(exclude({_G}.*.latency.*.count, '[.]all[.]')), 1, 2, 4)",
                "{{service}} {{address}} {{source}}",
            ),
        ),
    ),
    Panel(
        "Failed probes a second",
        "Why stands in the label reason.",
        "reqps",
        (
            Query(
                f'sum by (service, address, reason) (rate(lbsidecar_probes_total{{{_S},result="fail"}}[{RANGE}]))',
                f"aliasByNode(perSecond(exclude({_G}.*.probes.fail, '[.]all[.]')), 1, 2)",
                "{{service}} {{address}} {{reason}}",
            ),
        ),
    ),
    Panel(
        "Ejections and returns",
        "In the last quarter of an hour, those that were done.",
        "short",
        (
            Query(
                f'sum by (service) (increase(lbsidecar_ejections_total{{{_S},enforced="true"}}[15m]))',
                f"aliasByNode(summarize(nonNegativeDerivative({_G}.all.ejections), '15min', 'sum'), 1, 3)",
                "{{service}} ejected",
            ),
            Query(
                f'sum by (service) (increase(lbsidecar_returns_total{{{_S},enforced="true"}}[15m]))',
                f"aliasByNode(summarize(nonNegativeDerivative({_G}.all.returns), '15min', 'sum'), 1, 3)",
                "{{service}} returned",
            ),
        ),
    ),
    Panel(
        "Held back",
        "Acts that a guard does not allow, by its name.",
        "short",
        (Query(f"lbsidecar_holds{{{_S}}}", f"aliasByNode({_G}.all.holds.*, 1, 4)", "{{service}} {{name}}"),),
    ),
    Panel(
        "Balancers",
        "Age of the last picture, and how long a balancer has not shown what it was told.",
        "s",
        (
            Query("lbsidecar_balancer_picture_age_seconds", "aliasByNode($prefix._balancer.*.picture_age, 2, 3)", "{{balancer}} picture"),
            Query("lbsidecar_balancer_drift_age_seconds", "aliasByNode($prefix._balancer.*.drift_age, 2, 3)", "{{balancer}} drift"),
        ),
    ),
    Panel(
        "The sidecar itself",
        "Lateness of its loop; blind = 1 means that it ejects nobody.",
        "s",
        (
            Query("lbsidecar_loop_lag_seconds", "alias($prefix._sidecar.loop_lag, 'loop lag')", "{{instance}} loop lag"),
            Query("lbsidecar_blind", "alias($prefix._sidecar.blind, 'blind')", "{{instance}} blind"),
        ),
    ),
)


class Alert(NamedTuple):
    """`severity`: page wakes somebody; warning and note do not."""

    name: str
    expression: str
    lasts: str
    severity: str
    summary: str


ALERTS = (
    Alert("LbSidecarAbsent", "absent(lbsidecar_build_info)", "2m", "page", "No sidecar tells anything: nobody watches the instances."),
    Alert(
        "ServiceFailingOpen",
        "lbsidecar_service_failing_open == 1",
        "1m",
        "page",
        "{{ $labels.service }} fails open: too few instances are healthy, doubtful ones get traffic.",
    ),
    Alert(
        "NoInstanceLeft",
        "lbsidecar_service_in_rotation == 0 and lbsidecar_service_counted > 0",
        "1m",
        "page",
        "{{ $labels.service }} has no instance in rotation.",
    ),
    Alert(
        "FloorReached",
        'lbsidecar_holds{name="min_healthy"} > 0',
        "2m",
        "page",
        "{{ $labels.service }}: {{ $value }} bad instances stay in, fewer healthy ones than allowed would be left.",
    ),
    Alert(
        "SidecarBlind",
        "lbsidecar_blind == 1 or lbsidecar_journal_up == 0",
        "1m",
        "page",
        "The sidecar cannot trust its own measurements or its disk: it ejects nobody.",
    ),
    Alert(
        "BalancerDoesNotFollow",
        "lbsidecar_balancer_drift_age_seconds > 30",
        "30s",
        "page",
        "{{ $labels.balancer }} has not shown for {{ $value }} s what it was told.",
    ),
    Alert("BalancerAway", "lbsidecar_balancer_up == 0", "2m", "warning", "{{ $labels.balancer }} does not answer the sidecar."),
    Alert(
        "NoWitness",
        'lbsidecar_holds{name="no_witness"} > 0',
        "2m",
        "warning",
        "All of {{ $labels.service }} fail alike: a dependency, the network or the check itself.",
    ),
    Alert(
        "InstanceNotAsked",
        "lbsidecar_instance_last_probe_age_seconds > 60",
        "1m",
        "warning",
        "{{ $labels.service }} {{ $labels.address }} has not answered or not been asked for {{ $value }} s.",
    ),
    Alert("SidecarLate", "lbsidecar_loop_lag_seconds > 0.1", "5m", "warning", "The sidecar's own loop is late by {{ $value }} s."),
    Alert(
        "SinkLoses",
        "increase(lbsidecar_sink_dropped_total[10m]) > 0",
        "5m",
        "warning",
        "{{ $labels.sink }} loses what it is sent: away, slow, or refusing.",
    ),
    Alert(
        "InstanceOut",
        'lbsidecar_instance_judgement{judgement="ejected"} == 1',
        "10m",
        "note",
        "{{ $labels.service }} {{ $labels.address }} has been out for ten minutes.",
    ),
)

SCHEMAS = """# storage-schemas.conf of carbon: keep the finest retention no shorter than publish.graphite.interval
[lbsidecar]
pattern = ^lbsidecar\\.
retentions = 10s:6h,1m:7d,10m:5y
"""
AGGREGATION = """# storage-aggregation.conf of carbon: a mean of p99s says nothing, and counters only grow
[lbsidecar_quantiles]
pattern = ^lbsidecar\\..*\\.p\\d+$
xFilesFactor = 0
aggregationMethod = max

[lbsidecar]
pattern = ^lbsidecar\\.
xFilesFactor = 0
aggregationMethod = last
"""
LOGSTASH = """# A pipeline for publish.logstash. Nothing is parsed or renamed: the documents are ECS as they come.
input {
  tcp { port => 5000 codec => json_lines }
  # instead, and with confirmation: http { port => 8080 }, and in the sidecar's file  logstash: {url: "http://THIS-HOST:8080"}
}
output {
  elasticsearch {
    hosts => ["http://127.0.0.1:9200"]
    index => "logs-lbsidecar-default"
    action => "create"
    # the decision log's own number: what was sent twice is kept once
    document_id => "%{[host][name]}-%{[event][id]}"
  }
}
"""


def dashboard(store: str) -> dict[str, Any]:
    """Grafana's, for "prometheus" or "graphite"."""
    return {
        "__inputs": [
            {"name": "DS", "label": store.capitalize(), "type": "datasource", "pluginId": store, "pluginName": store.capitalize()}
        ],
        "__requires": [{"type": "datasource", "id": store, "name": store.capitalize(), "version": "1.0.0"}],
        "uid": f"lbsidecar-{store}",
        "title": f"lb-sidecar ({store})",
        "tags": ["lb-sidecar"],
        "schemaVersion": 39,
        "version": 1,
        "editable": True,
        "graphTooltip": 1,
        "refresh": "10s",
        "time": {"from": "now-1h", "to": "now"},
        "annotations": {"list": []},
        "templating": {"list": list(_variables(store))},
        "panels": [_panel(place, panel, store) for place, panel in enumerate(PANELS)],
    }


def _variables(store: str) -> Iterator[dict[str, Any]]:
    if store == "graphite":
        yield {
            "name": "prefix",
            "type": "textbox",
            "label": "Prefix",
            "query": "lbsidecar",
            "current": {"text": "lbsidecar", "value": "lbsidecar"},
        }
    query = "label_values(lbsidecar_service_instances, service)" if store == "prometheus" else "$prefix.*"
    yield {
        "name": "service",
        "type": "query",
        "label": "Service",
        "datasource": _source(store),
        "query": query,
        "refresh": 2,
        "includeAll": True,
        "allValue": ".*" if store == "prometheus" else "*",
        "multi": store == "prometheus",
        "current": {"text": "All", "value": "$__all"},
        "regex": "" if store == "prometheus" else "/^[^_]/",
    }


def _panel(place: int, panel: Panel, store: str) -> dict[str, Any]:
    return {
        "id": place + 1,
        "type": "timeseries",
        "title": panel.title,
        "description": panel.says,
        "datasource": _source(store),
        "gridPos": {"x": place % 2 * WIDTH, "y": place // 2 * HEIGHT, "w": WIDTH, "h": HEIGHT},
        "fieldConfig": {"defaults": {"unit": panel.unit, "custom": {"lineWidth": 1, "fillOpacity": 5}}, "overrides": []},
        "options": {"legend": {"displayMode": "list", "placement": "bottom"}, "tooltip": {"mode": "multi"}},
        "targets": [_target(chr(ord("A") + n), query, store) for n, query in enumerate(panel.queries)],
    }


def _target(letter: str, query: Query, store: str) -> dict[str, Any]:
    if store == "graphite":
        return {"refId": letter, "datasource": _source(store), "target": query.graphite}
    return {"refId": letter, "datasource": _source(store), "expr": query.prometheus, "legendFormat": query.legend}


def _source(store: str) -> dict[str, str]:
    return {"type": store, "uid": "${DS}"}


def rules() -> str:
    """Prometheus' rules. JSON strings are YAML strings."""
    lines = ["groups:", "  - name: lb-sidecar", "    rules:"]
    for each in ALERTS:
        lines += [
            f"      - alert: {each.name}",
            f"        expr: {json.dumps(each.expression)}",
            f"        for: {each.lasts}",
            f"        labels: {{severity: {each.severity}}}",
            f"        annotations: {{summary: {json.dumps(each.summary)}}}",
        ]
    return "\n".join(lines) + "\n"


def template() -> dict[str, Any]:
    """An index template for `logs-lbsidecar-*`: ECS' own types, and ours under `lbsidecar`."""
    keyword, number = {"type": "keyword", "ignore_above": 1024}, {"type": "double"}
    quantiles = {"properties": {"count": {"type": "long"}, **dict.fromkeys(("p50", "p90", "p95", "p99", "p999"), number)}}
    ours = {
        "instance": keyword,
        "balancer": keyword,
        "by": keyword,
        "judgement": keyword,
        "severity": keyword,
        "enforced": {"type": "boolean"},
        "over": {"type": "boolean"},
        "undo": {"type": "text"},
        "instances": {"type": "long"},
        "in_rotation": {"type": "long"},
        "sound": {"type": "long"},
        "serving": number,
        "last_probe_age": number,
        "latency": {"properties": {"probe": quantiles, "traffic": quantiles}},
        "evidence": {"type": "object", "enabled": False},
        "holds": {"type": "object", "enabled": False},
    }
    properties = {
        "@timestamp": {"type": "date"},
        "@version": keyword,
        "message": {"type": "text"},
        "ecs": {"properties": {"version": keyword}},
        "host": {"properties": {"name": keyword}},
        "log": {"properties": {"level": keyword}},
        "service": {"properties": {"name": keyword}},
        "server": {"properties": {"address": keyword, "ip": {"type": "ip"}, "port": {"type": "long"}}},
        "event": {
            "properties": {
                **dict.fromkeys(("action", "category", "dataset", "id", "kind", "outcome", "reference", "type"), keyword),
                "start": {"type": "date"},
            }
        },
        "lbsidecar": {"properties": ours},
    }
    return {"index_patterns": ["logs-lbsidecar-*"], "priority": 200, "template": {"mappings": {"dynamic": True, "properties": properties}}}


def saved_objects() -> list[dict[str, Any]]:
    """Kibana's: a data view, two searches, and a dashboard of both."""
    view = {"title": "logs-lbsidecar-*", "timeFieldName": "@timestamp", "name": "lb-sidecar"}
    searches = (
        (
            "lbsidecar-decisions",
            "lb-sidecar: decisions",
            'event.dataset : "lbsidecar.decision"',
            ["service.name", "event.action", "message", "lbsidecar.by"],
        ),
        (
            "lbsidecar-slow",
            "lb-sidecar: response times",
            'event.dataset : "lbsidecar.numbers"',
            ["service.name", "lbsidecar.instance", "lbsidecar.judgement", "lbsidecar.latency.probe.p50", "lbsidecar.latency.traffic.p99"],
        ),
    )
    objects = [_object("index-pattern", "lbsidecar-view", view, [])]
    objects += [_search(*each) for each in searches]
    panels = [
        {
            "panelIndex": str(n),
            "gridData": {"x": 0, "y": 20 * n, "w": 48, "h": 20, "i": str(n)},
            "type": "search",
            "embeddableConfig": {},
            "panelRefName": f"panel_{n}",
        }
        for n in range(len(searches))
    ]
    about = {
        "title": "lb-sidecar",
        "description": "Decisions with their reasons, and response times.",
        "panelsJSON": json.dumps(panels),
        "optionsJSON": json.dumps({"useMargins": True}),
        "timeRestore": False,
        "kibanaSavedObjectMeta": {"searchSourceJSON": json.dumps({"query": {"query": "", "language": "kuery"}, "filter": []})},
    }
    references = [{"name": f"{n}:panel_{n}", "type": "search", "id": search[0]} for n, search in enumerate(searches)]
    objects.append(_object("dashboard", "lbsidecar-dashboard", about, references))
    return objects


def _search(name: str, title: str, query: str, columns: list[str]) -> dict[str, Any]:
    source = {
        "query": {"query": query, "language": "kuery"},
        "filter": [],
        "indexRefName": "kibanaSavedObjectMeta.searchSourceJSON.index",
    }
    about = {
        "title": title,
        "columns": columns,
        "sort": [["@timestamp", "desc"]],
        "kibanaSavedObjectMeta": {"searchSourceJSON": json.dumps(source)},
    }
    return _object("search", name, about, [{"name": source["indexRefName"], "type": "index-pattern", "id": "lbsidecar-view"}])


def _object(kind: str, name: str, attributes: dict[str, Any], references: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        "type": kind,
        "id": name,
        "attributes": attributes,
        "references": references,
        "coreMigrationVersion": "8.8.0",
        "typeMigrationVersion": "8.0.0",
    }


def files() -> dict[str, str]:
    """By name, as they are shipped."""
    objects = saved_objects()
    end = {"exportedCount": len(objects), "missingRefCount": 0, "missingReferences": [], "excludedObjects": [], "excludedObjectsCount": 0}
    return {
        "grafana-prometheus.json": _pretty(dashboard("prometheus")),
        "grafana-graphite.json": _pretty(dashboard("graphite")),
        "prometheus-rules.yaml": rules(),
        "storage-schemas.conf": SCHEMAS,
        "storage-aggregation.conf": AGGREGATION,
        "logstash.conf": LOGSTASH,
        "index-template.json": _pretty(template()),
        "kibana.ndjson": "".join(json.dumps(each) + "\n" for each in (*objects, end)),
    }


def _pretty(value: object) -> str:
    return json.dumps(value, indent=1) + "\n"


if __name__ == "__main__":
    for file, text in files().items():
        (FOLDER / file).write_text(text, encoding="utf-8")

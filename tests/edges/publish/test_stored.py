"""What stores confirm: `_bulk`'s answers item by item, and the blocks that remote write demands."""

from __future__ import annotations

import json
from typing import Any

import pytest
from aiohttp import web
from cramjam import snappy
from hypothesis import given, settings
from hypothesis import strategies as st

from sidecar.core.model import Event
from sidecar.core.samples import Distribution, Sample
from sidecar.publish import Origin, publishers
from sidecar.publish.bulk import item, judge
from sidecar.publish.options import PublishOptions
from sidecar.publish.remote_write import body, series
from sidecar.publish.sink import Away
from sidecar.publish.snappy import compress, stored
from sidecar.store.decisions import Decisions
from tests.edges.publish.posted import Posted, answering
from tests.edges.publish.receiver import running, until
from tests.edges.publish.test_logstash import wall_of

BATCH = [b"a", b"b", b"c", b"d", b"e"]


def answer(*statuses: int) -> bytes:
    items = [{"create": {"status": status, **({"error": {"reason": "no"}} if status >= 400 else {})}} for status in statuses]
    return json.dumps({"took": 1, "errors": any(status >= 400 for status in statuses), "items": items}).encode()


def test_each_document_has_an_answer_of_its_own() -> None:
    found = judge(answer(201, 400, 409, 429, 503), BATCH)

    assert list(found.again) == [b"d", b"e"], "those whom the engine was too busy for"
    assert found.refused == 1
    assert json.loads(found.why)["status"] == 400


@pytest.mark.parametrize(
    "said",
    [
        b"",
        b"ok",
        b"{}",
        b"[]",
        b'{"items": 5}',
        b'{"items": [{}, {}, {}, {}, {}]}',
        b'{"items": [1, 2, 3, 4, 5]}',
        b"[" * 100_000,
        answer(201, 201),
    ],
)
def test_an_answer_that_is_none_keeps_the_batch(said: bytes) -> None:
    with pytest.raises(Away):
        judge(said, BATCH)


def test_a_document_sent_twice_has_the_same_id_and_another_has_another() -> None:
    one, same, other = item({"message": "a"}, "logs"), item({"message": "a"}, "logs"), item({"message": "b"}, "logs")

    assert one == same
    action, source = one.splitlines()
    assert json.loads(action)["create"]["_index"] == "logs"
    assert json.loads(source) == {"message": "a"}
    assert json.loads(action)["create"]["_id"] != json.loads(other.splitlines()[0])["create"]["_id"]


async def test_a_busy_engine_gets_the_rest_later_and_a_lying_one_loses_nothing() -> None:
    """First it lies, then it is busy with all but the first, then it takes them."""
    script = [b"<html>all is well", b"busy", b""]
    taken: list[str] = []

    async def engine(request: web.Request, got: bytes) -> web.StreamResponse:
        sources = got.decode().splitlines()[1::2]
        step = script.pop(0) if script else b""
        if step.startswith(b"<"):
            return web.Response(body=step)
        statuses = [201 if step == b"" or not place else 429 for place in range(len(sources))]
        taken.extend(json.loads(source)["message"] for source, status in zip(sources, statuses, strict=True) if status == 201)
        return web.Response(body=answer(*statuses))

    receiver = await Posted(engine).start()
    decisions = Decisions(None, 0)
    options = PublishOptions.model_validate({"elasticsearch": {"url": receiver.url, "interval": "1h"}})
    (publisher,) = publishers(options, Origin(list, decisions))
    async with running(publisher.run):
        await until(lambda: publisher.count().waiting == 0)
        decisions.append([Event("held", 0.0, "hold:panic", str(i), "shop") for i in range(10)], wall_of)
        await until(lambda: publisher.count().sent == 10)
    await receiver.stop()

    assert taken == [str(i) for i in range(10)]
    assert publisher.count().dropped == 0


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=300))
def test_both_ways_to_write_a_block_are_read_back(content: bytes) -> None:
    assert bytes(snappy.decompress_raw(stored(content))) == content
    assert bytes(snappy.decompress_raw(compress(content))) == content


def test_a_long_block_is_read_back() -> None:
    content = bytes(range(256)) * 1000

    assert bytes(snappy.decompress_raw(stored(content))) == content


def test_series_have_sorted_labels_no_empty_ones_and_a_bucket_each() -> None:
    times = Distribution(((0.5, 1), (1.0, 3)), 2.5, 4)
    labels = (("service", "shop"), ("reason", ""))
    sample = Sample("lbsidecar_response_seconds", "histogram", times, labels, "seconds", "X.")

    found = list(series([sample], 1.5, {}, (("job", "j"),), has_native=False))

    read = bytes(snappy.decompress_raw(body(found)))
    assert len(found) == 5
    assert b"reason" not in read
    names = [each.find(name) for each in found[:1] for name in (b"__name__", b"job", b"le", b"service")]
    assert names == sorted(names)
    assert -1 not in names
    assert found[2].count(b"+Inf") == 1


async def test_what_a_store_calls_bad_is_dropped_as_the_protocol_demands() -> None:
    receiver = await Posted(answering(400, b"out of order sample")).start()
    settings_: dict[str, Any] = {"remote_write": {"url": receiver.url, "interval": "1s"}}
    samples = [Sample("lbsidecar_blind", "gauge", 0.0, (), "", "X.")]
    (publisher,) = publishers(PublishOptions.model_validate(settings_), Origin(lambda: samples, Decisions(None, 0)))

    async with running(publisher.run):
        await until(lambda: publisher.count().dropped >= 2)
    await receiver.stop()

    assert publisher.count().sent == 0
    assert receiver.headers[0]["X-Prometheus-Remote-Write-Version"] == "0.1.0"
    assert receiver.headers[0]["Content-Encoding"] == "snappy"

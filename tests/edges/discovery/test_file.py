"""File discovery on real files: followed when replaced, and never half believed."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lbplugins.values import Address
from sidecar.core.model import Discovered, Instance
from sidecar.discovery import SourceError, ask, build_sources, run
from sidecar.discovery.file import File, parse
from sidecar.discovery.options import Instances


def instance(address: str) -> Instance:
    return Instance("shop", Address.parse(address))


async def test_prometheus_json_and_yaml_say_the_same(tmp_path: Path) -> None:
    groups = [{"targets": ["10.0.0.5:80", "[fd00::1]:80"], "labels": {"zone": "b", "__meta_x": "y"}}, {"targets": ["shop-3.example:81"]}]
    (tmp_path / "a.json").write_text(json.dumps(groups))
    (tmp_path / "a.yaml").write_text(
        "- targets: ['10.0.0.5:80', '[fd00::1]:80']\n  labels: {zone: b, __meta_x: y}\n- targets: [shop-3.example:81]\n"
    )

    facts = [(await ask(File("shop", tmp_path / name)))[0] for name in ("a.json", "a.yaml")]

    assert facts[0].error == "" and facts[0].instances == facts[1].instances and facts[0].labels == facts[1].labels
    assert facts[0].instances == (instance("10.0.0.5:80"), instance("[fd00::1]:80"), instance("shop-3.example:81"))
    assert facts[0].labels == {instance("10.0.0.5:80"): {"zone": "b"}, instance("[fd00::1]:80"): {"zone": "b"}}
    assert facts[0].source == f"file:{tmp_path / 'a.json'}"


async def test_an_empty_list_is_an_answer_without_instances(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text("[]")

    fact, again_s = await ask(File("shop", tmp_path / "a.json"))

    assert (fact.instances, fact.error, again_s) == ((), "", 1.0)


@pytest.mark.parametrize(
    ("raw", "words"),
    [
        (b"", "empty; write []"),
        (b'[{"targets": ["10.0.0.5:80"', "not JSON"),
        (b"\xff\xfe", "not UTF-8"),
        (b'{"targets": []}', "not a list of groups"),
        (b'["10.0.0.5:80"]', "group 1: no `targets` list"),
        (b'[{"targets": "10.0.0.5:80"}]', "group 1: no `targets` list"),
        (b'[{"targets": ["10.0.0.5:80"]}, {"targets": ["10.0.0.6"]}]', "group 2: '10.0.0.6' is not HOST:PORT"),
        (b'[{"targets": [80]}]', "is not HOST:PORT"),
        (b'[{"targets": ["169.254.169.254:80"]}]', "never asked"),
        (b'[{"targets": ["10.0.0.5:80"], "labels": []}]', ""),
        (b'[{"targets": ["10.0.0.5:80"], "labels": ["a"]}]', "labels"),
        (b'[{"targets": ["10.0.0.5:80"], "labels": {"a": {"b": 1}}}]', "label 'a' is not a short printable text"),
        (b'[{"targets": ["10.0.0.5:80"], "labels": {"a": "\\ud800"}}]', "label 'a' is not a short printable text"),
        (b"[" * 100_000, "not JSON"),
        (b" " * ((4 << 20) + 1), "bigger than 4 MiB"),
    ],
    ids=lambda value: str(value)[:24],
)
async def test_a_broken_file_is_an_error_as_a_whole(tmp_path: Path, raw: bytes, words: str) -> None:
    path = tmp_path / "a.json"
    path.write_bytes(raw)

    fact, _ = await ask(File("shop", path), deadline_s=60)

    if words:
        assert words in fact.error and str(path) in fact.error[:100] and fact.instances == ()
    else:
        assert fact.error == "" and fact.instances == (instance("10.0.0.5:80"),)


async def test_broken_yaml_and_too_many_targets_are_errors(tmp_path: Path) -> None:
    broken = tmp_path / "a.yaml"
    broken.write_text("- targets: [a:80\n")
    crowd = tmp_path / "b.json"
    crowd.write_text(json.dumps([{"targets": [f"10.{a}.{b}.1:80" for a in range(101) for b in range(100)]}]))

    assert "neither JSON nor YAML" in (await ask(File("shop", broken), deadline_s=60))[0].error
    assert "more than 10000" in (await ask(File("shop", crowd), deadline_s=60))[0].error


async def test_a_missing_file_is_an_error_until_it_comes_and_again_when_it_goes(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    source = File("shop", path)

    assert "No such file" in (await ask(source))[0].error
    path.write_text('[{"targets": ["10.0.0.5:80"]}]')
    assert (await ask(source))[0].instances == (instance("10.0.0.5:80"),)
    path.unlink()
    gone = (await ask(source))[0]
    assert "kept" in gone.error and gone.instances == ()


async def test_a_file_repaired_to_its_old_content_is_believed_again(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text('[{"targets": ["10.0.0.5:80"]}]')
    source = File("shop", path)
    good = (await ask(source))[0]
    path.write_text("[")

    assert (await ask(source))[0].error
    path.write_text('[{"targets": ["10.0.0.5:80"]}]')
    assert (await ask(source))[0].instances == good.instances


async def test_the_runner_follows_a_file_that_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text('[{"targets": ["10.0.0.5:80"]}]')
    facts: list[Discovered] = []
    news = asyncio.Event()

    def deliver(batch: Sequence[Discovered]) -> None:
        facts.extend(batch)
        news.set()

    async def told(count: int) -> None:
        async with asyncio.timeout(60):
            while len(facts) < count:
                news.clear()
                await news.wait()

    task = asyncio.create_task(run(File("shop", path), deliver))
    await told(1)
    (tmp_path / "new").write_text('[{"targets": ["10.0.0.5:80", "10.0.0.6:80"]}]')
    os.replace(tmp_path / "new", path)
    await told(2)
    path.write_text("[{")
    await told(3)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)

    assert [len(fact.instances) for fact in facts] == [1, 2, 0]
    assert facts[2].error and not facts[1].error


async def test_a_hung_read_is_waited_for_again_and_never_doubled(tmp_path: Path) -> None:
    path = tmp_path / "pipe.json"
    os.mkfifo(path)  # opening it blocks until somebody writes: a disk that hangs
    source = File("shop", path)

    for _ in range(3):
        assert "no answer within" in (await ask(source, deadline_s=0.1))[0].error
    with path.open("wb") as writer:
        writer.write(b'[{"targets": ["10.0.0.5:80"]}]')
    fact, _ = await ask(source, deadline_s=60)

    assert fact.instances == (instance("10.0.0.5:80"),)


async def test_static_instances_are_delivered_once_with_their_labels() -> None:
    (source,) = build_sources(
        "shop", Instances.model_validate(["10.0.0.5:80", {"address": "10.0.0.6:80", "id": "b", "labels": {"zone": "b"}}])
    )
    facts: list[Discovered] = []

    task = asyncio.create_task(run(source, facts.extend))
    while not facts:
        await asyncio.sleep(0)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)

    second = Instance("shop", Address("10.0.0.6", 80), "b")
    assert len(facts) == 1 and facts[0].source == "static"
    assert facts[0].instances == (instance("10.0.0.5:80"), second) and facts[0].labels == {second: {"zone": "b"}}


def test_no_instances_means_no_source() -> None:
    assert build_sources("shop", None) == []


@given(st.binary(max_size=120) | st.text(max_size=120).map(lambda text: text.encode("utf-8", "replace")))
def test_any_bytes_are_a_reading_or_a_source_error(raw: bytes) -> None:
    for name in ("a.json", "a.yaml"):
        try:
            reading = parse(raw, "shop", name)
        except SourceError as error:
            assert str(error).startswith(name)
        else:
            assert all(one.service == "shop" for one in reading.instances)

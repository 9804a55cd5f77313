"""The story without a daemon: recorded facts, taken in again, tell the same."""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from lbplugins.values import Address
from sidecar.cli import main
from sidecar.cli.offline import explain
from sidecar.cli.replay import replay
from sidecar.cli.show import Output
from sidecar.core.model import Decision, Event, Fact, Instance
from sidecar.core.world import World
from sidecar.journal.codec import encode
from sidecar.journal.recorder import Recorder
from sidecar.store.decisions import Decisions
from tests.core.lab import Lab, good, refused


class Recorded(Lab):
    """A lab whose facts are written down as the daemon would."""

    recorder: Recorder

    def feed(self, *facts: Fact) -> None:
        if not hasattr(self, "recorder"):
            super().feed(*facts)
            return
        if self.recorder.wants_segment:
            self.recorder.begin(encode(self.world, World), self.world.policy, self.now, time.time())
        before = len(self.decisions)
        now = self.now
        super().feed(*facts)
        decision: Decision | None = self.decisions[before] if len(self.decisions) > before else None
        self.recorder.batch(now, facts, decision)


@pytest.fixture
def state(tmp_path: Path) -> Iterator[Path]:
    lab = Recorded(4)
    lab.recorder = Recorder(tmp_path / "recorder", 64 << 20)
    lab.run(12.0)
    lab.answer(1, refused())
    lab.run(5.0)
    lab.answer(1, good())
    lab.run(5.0)
    lab.recorder.close(10)
    yield tmp_path


def test_explain_from_the_record_tells_out_and_back(state: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert explain(state, "shop/s1", None, Output("json")) == 0

    told = json.loads(capsys.readouterr().out)
    assert told["instance"]["judgement"] == "healthy"
    kinds = [d["kind"] for d in told["decisions"]["decisions"]]
    assert "ejected" in kinds and "returned" in kinds


def test_replay_of_the_same_facts_gives_the_same_decisions(state: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = argparse.Namespace(journal=state, state=None, config=None, since=None, until=None, output="json")

    assert replay(arguments) == 0

    assert json.loads(capsys.readouterr().out)["different"] == 0


def test_another_configuration_shows_what_would_differ(state: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = tmp_path / "new.yaml"
    config.write_text(
        "mode: act\nstate: {dir: /var/lib/nowhere}\nbalancers: {edge: {plugin: memory}}\n"
        "services: {shop: {balancer: edge, probe: {http: /health}, policy: {max_ejected: {hard: 0%, soft: 0%}}}}\n"
    )
    arguments = argparse.Namespace(journal=state, state=None, config=config, since=None, until=None, output="json")

    assert replay(arguments) == 1

    told = json.loads(capsys.readouterr().out)
    assert [t["kind"] for t in told["removed"]] == ["ejected", "returned"] and told["added"] == []


def test_who_is_not_there_is_named(state: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert explain(state, "shop/nobody", None, Output("json")) == 2
    assert "s1" in capsys.readouterr().err
    assert explain(state / "empty", "shop/s1", None, Output("json")) == 1


# ---- the decision log without a daemon ----


@pytest.fixture
def left_behind(state: Path) -> Path:
    """A state folder with a record and a decision log."""
    began = datetime.now(UTC)
    log = Decisions(state / "decisions", 1 << 20)
    shop = [Instance("shop", Address(f"10.0.0.{i}", 80)) for i in range(3)]
    events = [
        Event("ejected", 1.0, "rule:consecutive", "s1 ejected", "shop", shop[1]),
        Event("operator", 2.0, "operator:ann", "s2 drained", "shop", shop[2]),
        Event("returned", 3.0, "rule:rise", "s1 returned", "shop", shop[1]),
    ]
    log.append(events, lambda at: began - timedelta(seconds=100 - at))
    log.close(10)
    return state


def told(capsys: pytest.CaptureFixture[str], folder: Path, *words: str) -> list[str]:
    assert main(["history", "--state", str(folder), "--json", *words]) == 0
    return [decision["sentence"] for decision in json.loads(capsys.readouterr().out)["decisions"]]


def test_history_is_read_from_the_state_folder(left_behind: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert told(capsys, left_behind) == ["s1 returned", "s2 drained", "s1 ejected"]
    assert told(capsys, left_behind, "--by", "rule") == ["s1 returned", "s1 ejected"]
    assert told(capsys, left_behind, "--since", "10s") == []
    assert told(capsys, left_behind, "-n", "1", "shop") == ["s1 returned"]
    assert told(capsys, left_behind, "shop/s1") == ["s1 returned", "s1 ejected"]
    assert told(capsys, left_behind, "other") == []
    assert main(["history", "--state", str(left_behind)]) == 0
    shown = capsys.readouterr().out
    assert -1 < shown.find("s1 ejected") < shown.find("s1 returned")


def test_history_names_a_folder_that_is_not_there_and_an_instance_that_never_was(
    left_behind: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["history", "--state", str(left_behind / "none")]) == 1
    assert "there is no folder" in capsys.readouterr().err
    assert main(["history", "--state", str(left_behind), "shop/nobody"]) == 2
    assert "s1" in capsys.readouterr().err


def test_replay_takes_the_state_folder_by_the_same_word(state: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["replay", "--state", str(state), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["different"] == 0


def test_release_looks_into_the_state_folder_named_and_never_makes_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = tmp_path / "lb-sidecar.yaml"
    config.write_text(
        f"state: {{dir: {tmp_path}/usual}}\nbalancers: {{edge: {{plugin: memory}}}}\n"
        "services: {shop: {balancer: edge, probe: {http: /}}}\n"
    )
    (tmp_path / "other").mkdir(mode=0o750)

    assert main(["release", "--all", str(config), "--state", str(tmp_path / "none")]) == 1
    assert "there is no folder" in capsys.readouterr().err
    assert main(["release", "--all", str(config), "--state", str(tmp_path / "other")]) == 0

    assert "nothing of ours is out" in capsys.readouterr().out
    assert not (tmp_path / "usual").exists() and not (tmp_path / "none").exists()
    assert list((tmp_path / "other").iterdir())

"""The story without a daemon: recorded facts, taken in again, tell the same."""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from sidecar.cli.offline import explain
from sidecar.cli.replay import replay
from sidecar.cli.show import Output
from sidecar.core.model import Decision, Fact
from sidecar.core.world import World
from sidecar.journal.codec import encode
from sidecar.journal.recorder import Recorder
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
    arguments = argparse.Namespace(journal=state, config=None, since=None, until=None, output="json")

    assert replay(arguments) == 0

    assert json.loads(capsys.readouterr().out)["different"] == 0


def test_another_configuration_shows_what_would_differ(state: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = tmp_path / "new.yaml"
    config.write_text(
        "mode: act\nstate: {dir: /var/lib/nowhere}\nbalancers: {edge: {plugin: memory}}\n"
        "services: {shop: {balancer: edge, probe: {http: /health}, policy: {max_ejected: {hard: 0%, soft: 0%}}}}\n"
    )
    arguments = argparse.Namespace(journal=state, config=config, since=None, until=None, output="json")

    assert replay(arguments) == 1

    told = json.loads(capsys.readouterr().out)
    assert [t["kind"] for t in told["removed"]] == ["ejected", "returned"] and told["added"] == []


def test_who_is_not_there_is_named(state: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert explain(state, "shop/nobody", None, Output("json")) == 2
    assert "s1" in capsys.readouterr().err
    assert explain(state / "empty", "shop/s1", None, Output("json")) == 1

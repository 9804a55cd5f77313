"""The command line before any command runs, and the folders that commands only read."""

from __future__ import annotations

import os
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from sidecar.cli import main
from sidecar.cli.folder import Unreadable, journal_of, to_read
from sidecar.cli.replay import _verdicts
from sidecar.store.decisions import Record


def test_a_command_that_is_none_is_told_with_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["stauts"]) == 2
    assert "there is no command 'stauts'; did you mean 'status'?" in capsys.readouterr().err
    assert main([]) == 2
    assert "explain" in capsys.readouterr().err


@pytest.mark.parametrize("words", [["report", "--state"], ["replay"]])
def test_a_folder_that_is_not_there_is_told_and_not_made(words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*words, str(tmp_path / "none")]) == 2
    assert f"there is no folder {tmp_path / 'none'}" in capsys.readouterr().err
    assert not (tmp_path / "none").exists()


def test_a_folder_that_may_not_be_read_is_told_with_its_owner(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "recorder").mkdir()

    def refuse(_: object) -> list[str]:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "listdir", refuse)
    with pytest.raises(Unreadable, match="run it as"):
        to_read(tmp_path)
    with pytest.raises(Unreadable, match="run it as"):
        journal_of(tmp_path)


def test_the_demo_names_its_own_option(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["demo", "--listen", "here"]) == 2
    assert "--listen: 'here' is not HOST:PORT" in capsys.readouterr().err


def test_a_return_belongs_to_the_ejection_before_it() -> None:
    start = datetime(2026, 1, 1, tzinfo=UTC)
    kinds = ["ejected", "ejected", "returned"]
    log = [
        Record(id=i, when=start + timedelta(minutes=i), kind=kind, by="rule", sentence="", service="shop", instance="a:1")
        for i, kind in enumerate(kinds)
    ]

    assert [row["out_s"] for row in _verdicts(log)] == [None, 60.0]

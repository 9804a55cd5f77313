"""The command line before any command runs, and the folders that commands only read."""

from __future__ import annotations

import os
import subprocess
import sys
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


NOT_TO_BE_ENTERED = """
mount -t tmpfs -o mode=0755 tmpfs /etc
mkdir -m 0700 /etc/lb-sidecar
exec "$1" -c "
import os
from sidecar.cli import main
for user in (0, 65534):  # root first, who may import whatever is needed
    os.setuid(user)
    for words in (['check'], ['run'], ['release', '--all']):
        print('user', user, 'exit', main(words), flush=True)
"
"""


@pytest.mark.slow
@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody who may not look")
def test_a_configuration_folder_that_may_not_be_entered_is_told_in_one_line() -> None:
    argv = ["unshare", "-m", "sh", "-ec", NOT_TO_BE_ENTERED, "sh", sys.executable]
    done = subprocess.run(argv, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=60, check=False)

    assert done.stdout.count("user 0 exit 2") == done.stdout.count("user 65534 exit 2") == 3, done.stdout
    told = [line for line in done.stdout.splitlines() if "Permission denied" in line]
    assert len(told) == 3
    assert all("/etc/lb-sidecar/lb-sidecar.yaml:1" in line and "sudo -u lb-sidecar" in line for line in told)


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

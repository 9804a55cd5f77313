"""`lb-sidecar init`: a first configuration from the balancer's own, in observe mode, and what it could not translate."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from sidecar.config.draft import DraftError, render
from sidecar.config.from_haproxy import draft_haproxy
from sidecar.config.from_nginx import draft_nginx


def init(haproxy: Path | None, nginx: Path | None) -> tuple[str, list[str]]:
    """The configuration's text and the remarks, from exactly one of the two files; DraftError says why not."""
    if (haproxy is None) == (nginx is None):
        raise DraftError("name one file: --haproxy FILE or --nginx FILE")
    draft = draft_haproxy(haproxy) if haproxy is not None else draft_nginx(nginx or Path())
    return render(draft), list(draft.remarks)


def run_init(haproxy: Path | None, nginx: Path | None, output: Path | None) -> int:
    """Writes the text to `output` (never over an existing file) or standard output, the remarks to standard error; 0, or 2."""
    try:
        text, remarks = init(haproxy, nginx)
        if output is not None:
            _create(output, text)
    except DraftError as error:
        print(f"lb-sidecar init: {error}", file=sys.stderr)
        return 2
    if output is None:
        sys.stdout.write(text)
    for remark in remarks:
        print(f"- {remark}", file=sys.stderr)
    where = str(output) if output is not None else "the file you save this to"
    print(f"Next: lb-sidecar check {where}", file=sys.stderr)
    return 0


def _create(path: Path, text: str) -> None:
    try:
        with open(path, "x", encoding="utf-8", opener=lambda name, flags: os.open(name, flags, 0o640)) as stream:
            stream.write(text)
    except FileExistsError as error:
        raise DraftError(f"{path} is there already and was not touched; name another --output, or remove it") from error
    except FileNotFoundError as error:
        raise DraftError(f"{path}: there is no folder {path.parent}; make it, or name another --output") from error
    except OSError as error:
        raise DraftError(f"{path}: {error.strerror}; name an --output that you may write") from error

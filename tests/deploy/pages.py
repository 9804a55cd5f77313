"""The pages that people read, as tests see them: files, fenced blocks, links, commands."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("changelog.d/*.md")])
MARKER = "# lb-sidecar.yaml"
"""The first line of a block that is a whole configuration."""

_FENCE = re.compile(r"^```(\S*)[^\n]*\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"(?<!!)\[[^\]]+\]\(([^)\s]+)\)")


class Block(NamedTuple):
    """One fenced block: the page, the word behind the fence, the text."""

    page: Path
    language: str
    text: str


def blocks(page: Path) -> list[Block]:
    return [Block(page, match[1], match[2]) for match in _FENCE.finditer(page.read_text(encoding="utf-8"))]


def links(page: Path) -> list[str]:
    """Links within the repository, with their #fragment."""
    prose = _FENCE.sub("", page.read_text(encoding="utf-8"))
    return [link for link in _LINK.findall(prose) if "://" not in link]


def anchors(page: Path) -> set[str]:
    """What a #fragment may name there, by the rule of the code hosts: lower case, punctuation gone, spaces to hyphens."""
    titles = re.findall(r"^#+ (.+)$", _FENCE.sub("", page.read_text(encoding="utf-8")), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def commands(page: Path) -> Iterator[list[str]]:
    """Every `lb-sidecar …` of the page's shell and console blocks and of its inline code, as words behind the program's name."""
    text = page.read_text(encoding="utf-8")
    lines = [line for block in blocks(page) if block.language in ("sh", "console") for line in block.text.splitlines()]
    lines += re.findall(r"`([^`\n]+)`", _FENCE.sub("", text))
    for line in lines:
        match = re.match(r"(?:\$ )?(?:sudo -u lb-sidecar )?lb-sidecar( .*)?$", line.strip())
        if match is not None and "…" not in line and "|" not in line:
            yield shlex.split(match[1] or "", comments=True)

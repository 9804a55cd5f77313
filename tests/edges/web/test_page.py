"""The page's files: nothing that could turn a name into markup, nothing from elsewhere, every element it asks for."""

from __future__ import annotations

import re
from importlib import resources

from tests.edges.web.conftest import Serve

STATIC = resources.files("sidecar.web") / "static"
HTML, SCRIPT, STYLE = ((STATIC / name).read_text("utf-8") for name in ("index.html", "app.js", "style.css"))


def test_no_text_ever_becomes_markup_or_code() -> None:
    for way in ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval(", "new Function", "DOMParser", "srcdoc", "cookie"):
        assert way not in SCRIPT, way


def test_nothing_is_inline_and_nothing_comes_from_elsewhere() -> None:
    assert not re.search(r"<script(?![^>]*\bsrc=)", HTML)
    assert not re.search(r"<style|\sstyle=|\son\w+=", HTML)
    for text in (HTML, SCRIPT, STYLE):
        assert not re.search(r"""(?:src|href|url|import|fetch|from)\s*[=(]?\s*["'(]?(?:https?:)?//""", text)


def test_the_script_finds_every_element_it_names() -> None:
    named = set(re.findall(r'byId\("([^"]+)"\)', SCRIPT))
    there = set(re.findall(r'\bid="([^"]+)"', HTML))

    assert named and named <= there


def test_links_from_a_configuration_are_web_addresses_only() -> None:
    assert r"/^https?:\/\//i.test(address)" in SCRIPT
    assert SCRIPT.count(".href =") == 2  # the runbook behind that test, and the card's own #fragment


async def test_the_files_are_served_with_their_types_and_no_others(serve: Serve) -> None:
    surface = await serve()
    types = {"/": "text/html", "/static/app.js": "text/javascript", "/static/style.css": "text/css", "/static/icon.svg": "image/svg+xml"}

    for path, wanted in types.items():
        async with surface.tcp.get(path) as answer:
            assert (answer.status, answer.content_type) == (200, wanted)
            assert len(await answer.read()) > 100
    async with surface.tcp.get("/static/options.py") as answer:
        assert answer.status == 404

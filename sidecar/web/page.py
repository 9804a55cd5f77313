"""The page's own files, read once. Plain HTML, CSS and script without a build step or anybody else's code."""

from __future__ import annotations

from importlib import resources

from aiohttp import web

from sidecar.web.problem import Problem

TYPES = {"html": "text/html", "js": "text/javascript", "css": "text/css", "svg": "image/svg+xml"}


class Page:
    """The files by name; no name from outside ever touches the file system."""

    def __init__(self) -> None:
        folder = resources.files("sidecar.web") / "static"
        self._files = {f.name: f.read_bytes() for f in folder.iterdir() if f.is_file() and f.name.rpartition(".")[2] in TYPES}

    def file(self, name: str) -> web.Response:
        body = self._files.get(name)
        if body is None:
            raise Problem(404, f"no file {name[:80]!r}", "open / for the page")
        return web.Response(body=body, content_type=TYPES[name.rpartition(".")[2]], charset="utf-8")


__all__ = ["Page"]

"""Our own log on standard error: one event, one line, text for people or JSON for collectors. Never blocks; what is lost is counted."""

from __future__ import annotations

import contextlib
import json
import logging
import logging.handlers
import queue
import sys
import threading
from datetime import UTC, datetime
from typing import Literal

from sidecar.core.model import Event

WAITING = 10_000
CLOSE_S = 1.0
_LEVELS = {"suspect": logging.DEBUG, "healthy": logging.INFO, "unknown": logging.DEBUG, "probation": logging.DEBUG}
_WARNINGS = frozenset({"ejected", "pool_event", "held", "balancer", "drift", "self", "refused", "discovery"})

log = logging.getLogger("sidecar")


class _Dropping(logging.handlers.QueueHandler):
    """A reader of our log that stands still costs its own lines, not our time."""

    dropped = 0

    def enqueue(self, record: logging.LogRecord) -> None:
        try:
            self.queue.put_nowait(record)
        except queue.Full:
            self.dropped += 1


class _Text(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        when = datetime.fromtimestamp(record.created).astimezone().isoformat(timespec="milliseconds")
        line = f"{when} {record.levelname.lower():7} {_one_line(record.getMessage())}"
        return f"{line}\n{self.formatException(record.exc_info)}" if record.exc_info else line


class _Json(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        when = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        fields = {"@timestamp": when, "log.level": record.levelname.lower(), "message": _one_line(record.getMessage())}
        fields.update(getattr(record, "fields", {}))
        if record.exc_info:
            fields["error.stack_trace"] = self.formatException(record.exc_info)
        return json.dumps(fields)


class EventLog:
    """Owns the log's thread. `close` writes what waits."""

    def __init__(self, level: str, form: Literal["text", "json"]) -> None:
        waiting: queue.Queue[logging.LogRecord | None] = queue.Queue(WAITING)
        self._handler = _Dropping(waiting)
        stream = logging.StreamHandler(sys.stderr)
        stream.setFormatter(_Json() if form == "json" else _Text())
        self._waiting = waiting
        self._thread = threading.Thread(target=_write, args=(waiting, stream), name="log", daemon=True)
        self._thread.start()
        root = logging.getLogger()
        root.handlers = [self._handler]
        root.setLevel(logging.WARNING)
        log.setLevel(level.upper())

    @property
    def dropped(self) -> int:
        return self._handler.dropped

    def tell(self, event: Event) -> None:
        """One decision or news as one line."""
        level = logging.WARNING if event.kind in _WARNINGS else _LEVELS.get(event.kind, logging.INFO)
        fields = {"event.action": event.kind, "lbsidecar.by": event.by, "lbsidecar.service": event.service}
        if event.instance is not None:
            fields["lbsidecar.instance"] = str(event.instance.address)
        log.log(level, "%s", f"[{event.kind}] {event.sentence} ({event.by})", extra={"fields": fields})

    def close(self) -> None:
        """For CLOSE_S at most: who reads our log may stand still. Safe twice."""
        logging.getLogger().handlers = []
        with contextlib.suppress(queue.Full):
            self._waiting.put(None, timeout=CLOSE_S / 2)
        self._thread.join(CLOSE_S / 2)


def _write(waiting: queue.Queue[logging.LogRecord | None], stream: logging.Handler) -> None:
    """The log's thread: the only one that waits for the reader."""
    while (record := waiting.get()) is not None:
        stream.handle(record)


def _one_line(text: str) -> str:
    """What came from outside cannot start a line of its own or paint the terminal."""
    return "".join(c if c.isprintable() else f"\\x{ord(c):02x}" for c in text)

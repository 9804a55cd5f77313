"""Every refusal of the API as one exception: what is wrong, what to do, which status."""

from __future__ import annotations

from sidecar.core.model import HoldName
from sidecar.web import models


class Problem(Exception):
    """An answer that is not what was asked for. `retry_after_s`: told to the client where waiting helps."""

    def __init__(
        self,
        status: int,
        error: str,
        cure: str,
        *,
        hold: HoldName | None = None,
        candidates: tuple[str, ...] | None = None,
        retry_after_s: int | None = None,
    ) -> None:
        super().__init__(error)
        self.status, self.retry_after_s = status, retry_after_s
        self.told = models.Error(error=error, cure=cure, status=status, hold=hold, candidates=candidates)


__all__ = ["Problem"]

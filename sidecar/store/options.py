"""Where the sidecar keeps its own state, as a configuration says it."""

from __future__ import annotations

from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field

from sidecar.net.units import Size

MIN_SIZE = 16 << 20


class StateOptions(BaseModel):
    """The state folder: intents, flight recorder, what was learned."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    dir: Path | None = Field(
        default=None,
        description="The folder. Default: $STATE_DIRECTORY, then /var/lib/lb-sidecar, then the user's state folder, said once at start.",
        examples=["/var/lib/lb-sidecar"],
    )
    max_size: Size = Field(
        default=512 << 20,
        ge=MIN_SIZE,
        description="Most bytes of flight recorder kept, oldest dropped first; at least 16MiB.",
        examples=["512MiB"],
    )

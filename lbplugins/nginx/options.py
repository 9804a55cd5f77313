"""The keys of an nginx balancer in the configuration."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

Argv = Annotated[list[Annotated[str, Field(min_length=1, max_length=4096)]], Field(min_length=1, max_length=64)]


class TrafficOptions(BaseModel):
    """Where nginx sends its access log: `HOST:PORT` (udp) or `unix:/path`, in the format that the documentation of this plugin gives."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    syslog: str = Field(min_length=3, max_length=300)

    @field_validator("syslog")
    @classmethod
    def _known(cls, text: str) -> str:
        if text.startswith("unix:"):
            path = text.removeprefix("unix:")
            if not path.startswith("/") or len(path.encode()) > 107:
                raise ValueError(f"{text!r}: a unix socket is an absolute path of at most 107 bytes, as unix:/run/lb-sidecar/log.sock")
            return text
        host, _, port = text.rpartition(":")
        if not host or not port.isascii() or not port.isdigit() or not 1 <= int(port) <= 65535:
            raise ValueError(f"{text!r} is neither HOST:PORT nor unix:/path")
        return text


class NginxOptions(BaseModel):
    """How to see and tell one nginx."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    config: Path = Path("/etc/nginx/nginx.conf")
    """The main configuration file: read to find upstreams, pid file and error log; never written."""
    servers_dir: Path = Path("/etc/nginx/sidecar.d")
    """The directory that holds one file of `server` lines per upstream; the only place we write to."""
    reload: Literal["signal"] | Argv = "signal"
    """`signal` sends HUP to the master (as root or as its user); a list is a command to run instead, for a user without that right."""
    test: Argv | None = None
    """A command that tests the configuration, in place of `BINARY -t`: for a user whom `-t` denies the pid file or a key."""
    binary: str = Field(default="nginx", min_length=1, max_length=4096)
    """The nginx program: a path, or a name looked up in PATH and the usual sbin directories."""
    prefix: Path | None = None
    """As nginx's `-p`; default: what the running master was started with, then what is compiled in."""
    pid_file: Path | None = None
    """The master's pid file; default: the `pid` directive, then what is compiled in."""
    traffic: TrafficOptions | None = None

    @field_validator("config", "servers_dir", "prefix", "pid_file")
    @classmethod
    def _absolute(cls, path: Path | None) -> Path | None:
        if path is not None and (not path.is_absolute() or ".." in path.parts):
            raise ValueError(f"{path} must be an absolute path without `..`")
        return path

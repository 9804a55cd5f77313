"""Where our state lives, found and checked once at start: nobody else may write there, because what we read there we act on."""

from __future__ import annotations

import os
import pwd
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

SYSTEM_DIR = Path("/var/lib/lb-sidecar")
NAME = "lb-sidecar"


class StateDirError(Exception):
    """There is no usable state folder. The message names it, says what is wrong and how to cure it."""


@dataclass(frozen=True, slots=True)
class StateDir:
    """The folder, and where its name came from, in words for the log."""

    path: Path
    origin: str

    def restore(self) -> None:
        """Make it again where it has been removed. StateDirError as in `resolve`."""
        _ready(self.path, self.origin)


def resolve(configured: Path | None, environ: Mapping[str, str], system: Path = SYSTEM_DIR, *, to_write: bool = True) -> StateDir:
    """`state.dir`, else $STATE_DIRECTORY, else the system's folder if this user can have it, else the user's own; made 0750 if it lacks.

    StateDirError: the folder meant is not safe, or `to_write` and not writable. What was asked for by name is never replaced by another.
    """
    rights = os.R_OK | os.X_OK | (os.W_OK if to_write else 0)
    if configured is not None:
        return _ready(configured, "state.dir", rights)
    # systemd may give several, separated by colons; and with DynamicUser= a link, which is its own.
    if named := environ.get("STATE_DIRECTORY", "").split(":")[0]:
        path = Path(named)
        return _ready(path.resolve() if _is_link_of_root(path) else path, "$STATE_DIRECTORY", rights)
    if _is_for_us(system, rights):
        return _ready(system, "the default", rights)
    return _ready(_users_folder(environ, system), f"{system} is not for this user", rights)


def _ready(path: Path, origin: str, rights: int = os.R_OK | os.W_OK | os.X_OK) -> StateDir:
    if not path.is_absolute():
        raise StateDirError(f"the state folder {path} ({origin}) must be an absolute path")
    _create(path, origin)
    _check(path, origin, rights)
    return StateDir(path, origin)


def _create(path: Path, origin: str) -> None:
    if os.path.lexists(path):
        return
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.mkdir(mode=0o750, exist_ok=True)
    except OSError as error:
        raise StateDirError(
            f"the state folder {path} ({origin}) cannot be created: {error.strerror or error}; create it for this user "
            f"(`install -d -m 0750 -o {_user(os.geteuid())} {path}`) or set `state.dir` to a folder that can be"
        ) from error


def _check(path: Path, origin: str, rights: int) -> None:
    """Refuse what someone else could write to, or swap."""
    found = os.stat(path, follow_symlinks=False)
    me = os.geteuid()
    what = f"the state folder {path} ({origin})"
    if stat.S_ISLNK(found.st_mode):
        raise StateDirError(f"{what} is a symbolic link, which its owner could turn elsewhere; name the folder itself: {path.resolve()}")
    if not stat.S_ISDIR(found.st_mode):
        raise StateDirError(f"{what} is not a folder; move it away or set `state.dir` to another")
    if found.st_uid != me:
        raise StateDirError(
            f"{what} belongs to {_user(found.st_uid)}, and this runs as {_user(me)}; run as that user "
            f"(`sudo -u {_user(found.st_uid)} …`), or give it over: `chown -R {_user(me)} {path}`"
        )
    if found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise StateDirError(f"{what} can be written by others (mode {stat.S_IMODE(found.st_mode):04o}): `chmod go-w {path}`")
    if not os.access(path, rights):
        raise StateDirError(f"{what} is not writable: `chmod u+rwx {path}`, or mount its file system for writing, or set `state.dir`")


def _is_for_us(system: Path, rights: int) -> bool:
    """Is the system's folder ours already, or can we make it?"""
    try:
        return os.stat(system, follow_symlinks=False).st_uid == os.geteuid() and os.access(system, rights)
    except FileNotFoundError:
        return os.access(system.parent, os.W_OK | os.X_OK)
    except OSError:
        return False


def _users_folder(environ: Mapping[str, str], system: Path) -> Path:
    # A relative XDG_STATE_HOME is to be ignored, says its specification.
    for text, rest in ((environ.get("XDG_STATE_HOME", ""), NAME), (environ.get("HOME", ""), f".local/state/{NAME}")):
        if text.startswith("/"):
            return Path(text) / rest
    raise StateDirError(f"no state folder: {system} is not for this user, and neither XDG_STATE_HOME nor HOME is set; set `state.dir`")


def _is_link_of_root(path: Path) -> bool:
    try:
        found = os.stat(path, follow_symlinks=False)
    except OSError:
        return False
    return stat.S_ISLNK(found.st_mode) and found.st_uid == 0


def _user(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


__all__ = ["StateDir", "StateDirError", "resolve"]

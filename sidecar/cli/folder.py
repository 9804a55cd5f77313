"""The state folder for commands that only read it: found as the daemon finds it, never made, and a sentence where it cannot be read."""

from __future__ import annotations

import os
import pwd
from pathlib import Path

from sidecar.store.state_dir import NAME, SYSTEM_DIR


class Unreadable(Exception):
    """There is no such folder, or this user may not read it. The message says what to do."""


def to_read(given: Path | None) -> Path:
    """The folder named, else the configuration's `state.dir`, $STATE_DIRECTORY, the system's, the user's own. Unreadable."""
    return listed(given or _configured() or _of_the_environment() or _usual())


def journal_of(state: Path) -> Path:
    """The flight recorder of a state folder, or the folder itself where it is one. Unreadable."""
    recorder = listed(state) / "recorder"
    return listed(recorder) if os.path.lexists(recorder) else state


def listed(folder: Path) -> Path:
    """The folder, if this user may look into it. Unreadable."""
    try:
        os.listdir(folder)
    except FileNotFoundError:
        raise Unreadable(
            f"there is no folder {folder}: name the state folder of `lb-sidecar run`, which `lb-sidecar check` shows"
        ) from None
    except NotADirectoryError:
        raise Unreadable(f"{folder} is no folder: name the state folder of `lb-sidecar run`") from None
    except PermissionError:
        raise Unreadable(
            f"this user may not read {folder}: run it as {owner_of(folder)} (`sudo -u {owner_of(folder)} lb-sidecar …`)"
        ) from None
    except OSError as error:
        raise Unreadable(f"{folder} cannot be read: {error.strerror or error}") from error
    return folder


def owner_of(path: Path) -> str:
    """Whose it is, by name where there is one; root where not even that may be seen."""
    try:
        uid = os.stat(path, follow_symlinks=False).st_uid
    except OSError:
        return "root"
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return f"#{uid}"


def _configured() -> Path | None:
    from sidecar.config.load import find_config, load
    from sidecar.config.problems import ConfigError

    try:
        config = load(find_config(None)).config
    except ConfigError:
        return None
    return config.state.dir if config is not None else None


def _of_the_environment() -> Path | None:
    named = os.environ.get("STATE_DIRECTORY", "").split(":")[0]
    return Path(named) if named else None


def _usual() -> Path:
    """The system's folder, whoever owns it; the user's own where there is none."""
    if os.path.lexists(SYSTEM_DIR):
        return SYSTEM_DIR
    for text, rest in ((os.environ.get("XDG_STATE_HOME", ""), NAME), (os.environ.get("HOME", ""), f".local/state/{NAME}")):
        if text.startswith("/") and os.path.isdir(Path(text) / rest):
            return Path(text) / rest
    return SYSTEM_DIR

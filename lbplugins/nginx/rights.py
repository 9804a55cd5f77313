"""What we may not do with this nginx, each with its cure: tried where trying changes nothing. Blocks, for a bounded time."""

from __future__ import annotations

import contextlib
import errno
import os
import pwd
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

from lbplugins.api import BalancerError
from lbplugins.nginx import files, process
from lbplugins.nginx.layout import Layout
from lbplugins.nginx.options import NginxOptions
from lbplugins.nginx.process import Master

TRIAL = ".lb-sidecar-trial"
"""A file that is made and removed at once, to see whether one can be."""


def lacking(
    options: NginxOptions, scan: Callable[[], Layout], master: Callable[[Layout], Master], test: Callable[[Master], str]
) -> list[str]:
    """One line for each missing right. `scan`, `master` and `test` are the plugin's own, so that what holds here holds there."""
    lines = list(_directory(options.servers_dir))
    try:
        found = scan()
    except BalancerError as error:
        return [str(error), *lines]
    for upstream in found.upstreams.values():
        lines += _file(upstream.file)
    try:
        running = master(found)
    except BalancerError as error:
        return [*lines, str(error)]
    lines += _test(options, running, test)
    lines += _reload(options, running)
    return lines


def _directory(path: Path) -> Iterator[str]:
    """Can files there be replaced?"""
    try:
        files.check_directory(path)
    except BalancerError as error:
        yield str(error)
        return
    if files.unwritable(path) is not None:
        yield f"{files.who()} may not write to {path}: `chown {_us()} {path}`"
        return
    trial = path / TRIAL
    try:
        os.close(os.open(trial, os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600))
    except OSError as error:
        yield f"no file can be made in {path}: {error.strerror or error}; {_room(error, path)}"
    finally:
        with contextlib.suppress(OSError):
            os.unlink(trial)


def _room(error: OSError, path: Path) -> str:
    if error.errno == errno.EROFS:
        return f"mount it for writing; under systemd, `ReadWritePaths={path}`"
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return "free some space"
    return "look at what guards it (SELinux, AppArmor, quotas)"


def _file(path: Path) -> Iterator[str]:
    """Can this file be read, and its owner be kept when it is replaced?"""
    try:
        files.read(path, 1 << 24, follow=False)
        about = os.lstat(path)
    except (BalancerError, OSError) as error:
        yield str(error)
        return
    is_ours = about.st_uid == os.geteuid() and about.st_gid in {os.getegid(), *os.getgroups()}
    if os.geteuid() != 0 and not is_ours:
        yield f"{path} belongs to uid {about.st_uid}, gid {about.st_gid}, which {files.who()} cannot keep: `chown {_us()}: {path}`"


def _test(options: NginxOptions, master: Master, test: Callable[[Master], str]) -> Iterator[str]:
    """Can the configuration be tested, and is it sound?"""
    if options.test is not None and (why := _may_run("test", options.test)) is not None:
        yield why
        return
    try:
        said = test(master)
    except BalancerError as error:
        yield str(error)
        return
    if not said:
        return
    if os.geteuid() != 0 and options.test is None and "denied" in said:
        yield f"{said}: {_by_sudo('test', [*_nginx(options), '-t', '-q', '-c', str(options.config)])}"
    else:
        yield f"nginx does not accept its own configuration, so nothing could be changed: {said}; mend it"


def _reload(options: NginxOptions, master: Master) -> Iterator[str]:
    """Can nginx be told to read its files again?"""
    if options.reload != "signal":
        if (why := _may_run("reload", options.reload)) is not None:
            yield why
        return
    denied = process.may_not_signal(master)
    try:
        os.kill(master.life.pid, 0)
    except ProcessLookupError:
        yield f"nginx master {master.life.pid} has just ended; start nginx"
        return
    except PermissionError:
        denied = denied or f"{files.who()} may not signal nginx"
    if denied is not None:
        reason = denied.partition(";")[0]
        yield f"{reason}: {_by_sudo('reload', [*_nginx(options), '-c', str(options.config), '-s', 'reload'])}"


def _may_run(key: str, argv: Sequence[str]) -> str | None:
    """None, or why this command of the configuration cannot be run; `sudo` is asked whether it would let us."""
    if shutil.which(argv[0]) is None:
        return f"{key}: there is no program {argv[0]!r} that {files.who()} may run; give its whole path, or install it"
    if os.path.basename(argv[0]) != "sudo" or "-n" not in argv:
        return None
    code, _ = process.run([argv[0], "-l", *argv[1:]], process.TEST_DEADLINE_S, "/")
    if code == 0:
        return None
    command = next((at for at, word in enumerate(argv[1:], 1) if word.startswith("/")), len(argv))
    return f"{key}: sudo does not let {files.who()} run it without a password: {_sudoers(argv[command:])}"


def _by_sudo(key: str, argv: Sequence[str]) -> str:
    words = ", ".join(["sudo", "-n", *argv])
    return f"`{key}: [{words}]` here, and {_sudoers(argv)}"


def _sudoers(argv: Iterable[str]) -> str:
    return f"in sudoers `{_us()} ALL=(root) NOPASSWD: {' '.join(argv)}`"


def _nginx(options: NginxOptions) -> list[str]:
    """The program, by its whole path, as sudoers wants it, and its prefix if it has one of its own."""
    try:
        binary = process.find_binary(options.binary)
    except BalancerError:
        binary = options.binary
    return [binary, *(["-p", f"{options.prefix}/"] if options.prefix is not None else [])]


def _us() -> str:
    """The user we run as, as `chown` takes it."""
    try:
        return pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:
        return str(os.geteuid())


__all__ = ["lacking"]

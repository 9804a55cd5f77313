"""Command probes: a program of the operator's, exit 0 is good. No shell, an empty environment, and nothing outlives the deadline."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import resource
import select
import signal
import subprocess
from typing import IO

from lbplugins.values import Address
from sidecar.core.model import Reason, Result
from sidecar.net.addresses import host_problem
from sidecar.net.dial import DeadlinePassed
from sidecar.probes.attempt import Attempt, Failed, now

MAX_OUTPUT = 64 * 1024
REAP_S = 0.5
SEARCH_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


async def ask_command(attempt: Attempt) -> None:
    """Run it in a process group of its own; at the deadline, and at its end, whatever is left of the group is killed."""
    argv = fill(attempt.spec.command or (), attempt.address)
    attempt.phase = "command"
    child = _start(argv)
    output = _Output(child)
    try:
        _limit(child.pid, attempt.timeout_s)
        await _exit(child.pid, attempt.deadline)
    finally:
        # Not yet reaped, alive or dead, so the group's number cannot belong to anyone else.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGKILL)
        code = await _reap(child)
        said = output.close()
    if code != 0:
        how = f"exit code {code}" if code > 0 else f"killed by {signal.Signals(-code).name}"
        raise Failed(Reason.COMMAND, f"{argv[0]}: {how}" + (f": {said}" if said else ""))


def fill(argv: tuple[str, ...], address: Address) -> list[str]:
    """The arguments with {host} and {port} put in, whole ones only. `Failed` (unknown) for a host that is none."""
    if problem := host_problem(address.host):
        raise Failed(Reason.NAME_LOOKUP, problem, result=Result.UNKNOWN)
    given = {"{host}": address.host, "{port}": str(address.port)}
    return [given.get(argument, argument) for argument in argv]


def _start(argv: list[str]) -> subprocess.Popen[bytes]:
    try:
        return subprocess.Popen(
            argv,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env={"PATH": SEARCH_PATH},
            cwd="/",
            start_new_session=True,
            bufsize=0,
        )
    except OSError as error:
        if error.errno in (errno.EAGAIN, errno.EMFILE, errno.ENFILE, errno.ENOMEM):
            raise Failed(Reason.NO_DESCRIPTORS, f"cannot start {argv[0]}: {error.strerror}", result=Result.UNKNOWN) from error
        raise Failed(Reason.COMMAND, f"cannot start {argv[0]}: {error.strerror}; check the path", result=Result.UNKNOWN) from error


def _limit(pid: int, timeout_s: float) -> None:
    """No core dumps, no busy loop beyond the deadline, few files. A process that is gone needs none."""
    seconds = int(timeout_s) + 2
    limits = ((resource.RLIMIT_CORE, 0), (resource.RLIMIT_CPU, seconds), (resource.RLIMIT_NOFILE, 256))
    with contextlib.suppress(ProcessLookupError, PermissionError, ValueError):
        for which, most in limits:
            resource.prlimit(pid, which, (most, most))


async def _exit(pid: int, deadline: float) -> None:
    """Until the process has ended; it is not reaped here. DeadlinePassed."""
    loop = asyncio.get_running_loop()
    waiter: asyncio.Future[None] = loop.create_future()
    ended = os.pidfd_open(pid)

    def wake() -> None:
        if not waiter.done():
            waiter.set_result(None)

    timer = loop.call_at(deadline, wake)
    loop.add_reader(ended, wake)
    try:
        await waiter
        if not _has_ended(ended):
            raise DeadlinePassed
    finally:
        timer.cancel()
        loop.remove_reader(ended)
        os.close(ended)


def _has_ended(ended: int) -> bool:
    poll = select.poll()
    poll.register(ended, select.POLLIN)
    return bool(poll.poll(0))


async def _reap(child: subprocess.Popen[bytes]) -> int:
    """The exit code, negative for a signal. One that even SIGKILL does not end soon (a dead disk) is left to the next start to reap."""
    if child.poll() is None:
        with contextlib.suppress(DeadlinePassed):
            await _exit(child.pid, now() + REAP_S)
    code = child.poll()
    return -signal.SIGKILL if code is None else code


class _Output:
    """What the program says, read as it comes so that it never blocks; the first 64 KiB are kept."""

    def __init__(self, child: subprocess.Popen[bytes]) -> None:
        assert child.stdout is not None
        self._pipe: IO[bytes] = child.stdout
        self._kept = bytearray()
        self._loop = asyncio.get_running_loop()
        os.set_blocking(self._pipe.fileno(), False)
        self._loop.add_reader(self._pipe.fileno(), self._read)

    def close(self) -> str:
        """Take what is left, without waiting for processes that hold the pipe open; the first line said."""
        self._read()
        if not self._pipe.closed:
            self._stop()
        lines = self._kept.decode("utf-8", "replace").strip().splitlines()
        return lines[0] if lines else ""

    def _read(self) -> None:
        if self._pipe.closed:
            return
        try:
            data = os.read(self._pipe.fileno(), MAX_OUTPUT)
        except BlockingIOError:
            return
        self._kept += data[: MAX_OUTPUT - len(self._kept)]
        if not data:
            self._stop()

    def _stop(self) -> None:
        self._loop.remove_reader(self._pipe.fileno())
        self._pipe.close()

"""An asyncio loop in virtual time, shared by simulated processes that can be stopped, continued and killed at any point.

Waiting costs nothing: with nothing to run the clock moves to the next timer. Everything runs on one thread, in one order; the same
inputs give the same run. Whoever schedules something does it as the process in its context: what a killed one left is never run, not
even its `finally`.
"""

from __future__ import annotations

import asyncio
import collections
import contextlib
import contextvars
import errno
import heapq
import os
from collections.abc import Callable
from concurrent.futures import Executor, Future
from typing import Any, NamedTuple, Protocol, TypeVar

T = TypeVar("T")

LIVELOCK = 100_000
"""So many callbacks at one moment are no progress."""


class Deadlock(AssertionError):
    """Nothing is left to run and no timer is set: whoever waits, waits for ever."""


class Killed(BaseException):
    """kill -9 in the middle of a call: nothing after this line is run."""


class Process:
    """One simulated process. `fuse`: so many points it may still pass before it is killed; None = any number."""

    def __init__(self, name: str, pid: int) -> None:
        self.name, self.pid = name, pid
        self.is_alive, self.is_stopped = True, False
        self.fuse: int | None = None
        self.died_at = ""
        self.on_death: Callable[[], None] = lambda: None
        self._held: list[asyncio.Handle] = []

    @property
    def runs(self) -> bool:
        return self.is_alive and not self.is_stopped

    def hold(self, handle: asyncio.Handle) -> None:
        """Keep what it would have run. What is dead is kept too: dropping it would run its `finally`."""
        self._held.append(handle)

    def resume(self) -> list[asyncio.Handle]:
        self.is_stopped = False
        held, self._held = self._held, []
        return held

    def kill(self, where: str = "") -> None:
        if self.is_alive:
            self.is_alive, self.died_at = False, where
            self.on_death()

    def point(self, where: str) -> None:
        """A place where it may be killed; Killed if this is the one, or if it is dead already."""
        if self.is_alive and self.fuse is not None:
            self.fuse -= 1
            if self.fuse <= 0:
                self.kill(where)
        if not self.is_alive:
            raise Killed(where)


CURRENT: contextvars.ContextVar[Process | None] = contextvars.ContextVar("process", default=None)
"""Whose code is running; None = the world's own."""


class VirtualLoop(asyncio.BaseEventLoop):
    """Time is a number. `run_until` drives it; work for threads is done in place, `thread_s` later."""

    _ready: collections.deque[asyncio.Handle]
    _scheduled: list[asyncio.TimerHandle]
    _stopping: bool

    def __init__(self, start: float = 1000.0) -> None:
        super().__init__()
        self.now = start
        self.thread_s: Callable[[], float] = lambda: 0.001
        self.listeners: dict[str, Listener] = {}
        """Who listens at which unix socket."""
        self.faults: list[BaseException | str] = []
        self._at_once = 0
        self._tasks: list[asyncio.Task[Any]] = []
        self.set_exception_handler(self._broke)
        self.set_task_factory(self._begin)

    def time(self) -> float:
        return self.now

    def run_until(self, when: float) -> None:
        """Everything up to this moment. Deadlock, and whatever broke in a callback, comes out here."""
        stop = super().call_at(when, self.stop)
        try:
            self.run_forever()
        finally:
            stop.cancel()
        if self.faults:
            fault = self.faults[0]
            raise fault if isinstance(fault, BaseException) else AssertionError(fault)

    def resume(self, process: Process) -> None:
        """SIGCONT."""
        self._ready.extend(process.resume())

    def start_task(self, coroutine: Any, process: Process | None) -> asyncio.Task[Any]:
        """Begin a coroutine as this process."""
        context = contextvars.copy_context()
        context.run(CURRENT.set, process)
        return self.create_task(coroutine, context=context)

    def bury(self) -> None:
        """The end of the world: what was left half done is let go of, and whatever that still says is not heard."""
        for task in self._tasks:
            if not task.done():
                task._log_destroy_pending = False  # type: ignore[attr-defined]
                with contextlib.suppress(BaseException):
                    task.get_coro().close()
        self._tasks.clear()
        self._ready.clear()
        self._scheduled.clear()
        self.close()

    def _begin(self, loop: asyncio.AbstractEventLoop, coroutine: Any, **options: Any) -> asyncio.Task[Any]:
        """Tasks are kept: one that waits for an answer that never comes is referred to by nobody else."""
        task: asyncio.Task[Any] = asyncio.Task(coroutine, loop=loop, **options)
        self._tasks.append(task)
        return task

    def _run_once(self) -> None:
        timers: list[asyncio.TimerHandle] = self._scheduled
        while timers and timers[0].cancelled():
            heapq.heappop(timers)._scheduled = False  # type: ignore[attr-defined]
        if not self._ready and not self._stopping:
            if not timers:
                raise Deadlock(f"at {self.now:.3f} everybody waits and nothing will ever happen")
            if timers[0].when() > self.now:
                self.now, self._at_once = timers[0].when(), 0
        while timers and timers[0].when() <= self.now:
            timer = heapq.heappop(timers)
            timer._scheduled = False  # type: ignore[attr-defined]
            if not timer.cancelled():
                self._ready.append(timer)
        self._at_once += len(self._ready)
        if self._at_once > LIVELOCK:
            raise Deadlock(f"at {self.now:.3f} something runs for ever without time passing")
        for _ in range(len(self._ready)):
            handle = self._ready.popleft()
            process = handle._context.get(CURRENT)  # type: ignore[attr-defined]
            if process is not None and not process.runs:
                process.hold(handle)
            elif not handle.cancelled():
                handle._run()

    async def create_unix_connection(  # type: ignore[override]
        self, protocol_factory: Callable[[], asyncio.Protocol], path: str
    ) -> tuple[asyncio.Transport, asyncio.Protocol]:
        """A connection to whoever listens there; FileNotFoundError when nobody does."""
        await asyncio.sleep(0)
        if path not in self.listeners:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path)
        protocol = protocol_factory()
        pipe = _Pipe(self, protocol, self.listeners[path].connect())
        protocol.connection_made(pipe)
        return pipe, protocol

    def run_in_executor(self, executor: Executor | None, func: Callable[..., T], *args: Any) -> asyncio.Future[T]:  # type: ignore[override]
        """Done in place, by and by."""
        if executor is not None and not isinstance(executor, InTurn):
            raise AssertionError("a real thread in a simulated world")
        future: asyncio.Future[T] = self.create_future()

        def work() -> None:
            if future.cancelled():
                return
            try:
                result = func(*args)
            except Exception as error:
                future.set_exception(error)
            else:
                future.set_result(result)

        self.call_later(self.thread_s(), work)
        return future

    def call_soon_threadsafe(  # type: ignore[override]
        self, callback: Callable[..., object], *args: Any, context: contextvars.Context | None = None
    ) -> asyncio.Handle:
        return self.call_soon(callback, *args, context=context)

    def _write_to_self(self) -> None: ...

    def _process_events(self, event_list: Any) -> None: ...

    def _broke(self, loop: asyncio.AbstractEventLoop, about: dict[str, Any]) -> None:
        """A bug, unless it is the last gasp of a killed process."""
        error = about.get("exception")
        process = CURRENT.get()
        if isinstance(error, Killed) or (process is not None and not process.is_alive):
            return
        self.faults.append(error if isinstance(error, BaseException) else str(about.get("message")))


class Answer(NamedTuple):
    """What a listener makes of one line: its words, and when, seconds from now. `is_whole` False: they break off; None for never."""

    text: bytes
    after_s: float = 0.001
    is_whole: bool | None = True


class Listener(Protocol):
    """Who is at the other end of a socket. `connect` may raise OSError; it gives what answers on that one connection."""

    def connect(self) -> Callable[[bytes], Answer]: ...


class _Pipe(asyncio.Transport):
    """Our end of one connection, for one line and its answer. A line that was sent arrives, whatever becomes of us."""

    def __init__(self, loop: VirtualLoop, protocol: asyncio.Protocol, answers: Callable[[bytes], Answer]) -> None:
        super().__init__()
        self._loop, self._protocol, self._answers = loop, protocol, answers
        self._line, self._is_closed = b"", False

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self._line += bytes(data)
        if self._line.endswith(b"\n"):
            line, self._line = self._line, b""
            self._loop.call_later(0.0005, self._arrive, line, context=contextvars.Context())

    def _arrive(self, line: bytes) -> None:
        answer = self._answers(line)
        if answer.is_whole is not None:
            self._loop.call_later(answer.after_s, self._answered, answer)

    def _answered(self, answer: Answer) -> None:
        if not self._is_closed:
            self._protocol.data_received(answer.text if answer.is_whole else answer.text[: len(answer.text) // 2])
            self._protocol.eof_received()
            self.abort()

    def abort(self) -> None:
        if not self._is_closed:
            self._is_closed = True
            self._loop.call_soon(self._protocol.connection_lost, None)

    close = abort

    def is_closing(self) -> bool:
        return self._is_closed


class InTurn(Executor):
    """A pool of one thread, in virtual time: each job takes `job_s` and its effect comes at its end."""

    def __init__(self, loop: VirtualLoop, job_s: Callable[[], float]) -> None:
        self._loop, self._job_s = loop, job_s
        self._jobs: collections.deque[Callable[[], None]] = collections.deque()
        self._is_busy = False

    def submit(self, fn: Callable[..., T], /, *args: Any, **kwargs: Any) -> Future[T]:
        future: Future[T] = Future()

        def job() -> None:
            try:
                future.set_result(fn(*args, **kwargs))
            except Exception as error:
                future.set_exception(error)

        self._jobs.append(job)
        self._begin()
        return future

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Whoever waits for its end gets everything done now."""
        while wait and self._jobs:
            self._jobs.popleft()()

    def _begin(self) -> None:
        if self._jobs and not self._is_busy:
            self._is_busy = True
            self._loop.call_later(self._job_s(), self._end)

    def _end(self) -> None:
        self._is_busy = False
        if self._jobs:
            self._jobs.popleft()()
        self._begin()


__all__ = ["CURRENT", "Answer", "Deadlock", "InTurn", "Killed", "Listener", "Process", "VirtualLoop"]

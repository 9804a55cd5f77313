"""An epoll set with an alarm to the microsecond. Asyncio's is of whole milliseconds, rounded up: as long as half a health answer here."""

from __future__ import annotations

import ctypes
import math
import os
import select
import struct
import time

_MONOTONIC, _ABSOLUTE, _FLAGS = 1, 1, os.O_NONBLOCK | os.O_CLOEXEC
_TIMES = struct.Struct("=qqqq")
_LIBC = ctypes.CDLL(None, use_errno=True)


class Clockwork:
    """`poller` is the epoll set; whoever registers there gets its descriptors back from `wait`."""

    def __init__(self) -> None:
        self.poller = select.epoll()
        self._alarm = _LIBC.timerfd_create(_MONOTONIC, _FLAGS)
        if self._alarm < 0:
            raise OSError(ctypes.get_errno(), "timerfd_create")
        self.poller.register(self._alarm, select.EPOLLIN)
        self._set = math.inf

    def wait(self, until: float) -> list[tuple[int, int]]:
        """What became ready, as (descriptor, events); empty when it is `until` (monotonic seconds, infinite = never)."""
        if until <= time.monotonic():
            return [each for each in self.poller.poll(0) if each[0] != self._alarm]
        if until != self._set:
            self._set = until
            seconds, rest = divmod(until if math.isfinite(until) else 0.0, 1)
            if _LIBC.timerfd_settime(self._alarm, _ABSOLUTE, _TIMES.pack(0, 0, int(seconds), int(rest * 1e9)), None) < 0:
                raise OSError(ctypes.get_errno(), "timerfd_settime")
        ready = []
        for fd, events in self.poller.poll():
            if fd == self._alarm:
                os.read(self._alarm, 8)
                self._set = math.nan
            else:
                ready.append((fd, events))
        return ready

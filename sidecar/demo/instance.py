"""One instance: a minimal HTTP server that names itself. `python -m sidecar.demo.instance PORT [HOST]`."""

from __future__ import annotations

import argparse
import asyncio
import signal


class _Conversation(asyncio.Protocol):
    """One connection; requests without bodies, answers in order."""

    def __init__(self, server: Instance) -> None:
        self._server = server
        self._buffer = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        while b"\r\n\r\n" in self._buffer:
            head, _, self._buffer = self._buffer.partition(b"\r\n\r\n")
            self._transport.write(self._server.answer(head))
            if b"connection: close" in head.lower():
                self._transport.close()
        if len(self._buffer) > 65536:
            self._transport.close()


class Instance:
    """What this instance says. SIGUSR1 makes its health path fail, SIGUSR2 mends it; `/asked` = how often that was asked well."""

    def __init__(self, name: str) -> None:
        self.name = name.encode()
        self.is_failing = False
        self.asked = 0

    def answer(self, head: bytes) -> bytes:
        path = head.split(b" ", 2)[1] if head.count(b" ") >= 2 else b"/"
        failing = self.is_failing and path.startswith(b"/health")
        status = b"500 Internal Server Error" if failing else b"200 OK"
        self.asked += path.startswith(b"/health") and not failing
        body = b"%d\n" % self.asked if path == b"/asked" else self.name + b"\n"
        return b"HTTP/1.1 %s\r\nContent-Length: %d\r\nX-Instance: %s\r\n\r\n%s" % (status, len(body), self.name, body)


async def serve(port: int, host: str = "127.0.0.1") -> None:
    """Until SIGTERM."""
    instance = Instance(str(port))
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    loop.add_signal_handler(signal.SIGTERM, stop.set)
    loop.add_signal_handler(signal.SIGUSR1, setattr, instance, "is_failing", True)
    loop.add_signal_handler(signal.SIGUSR2, setattr, instance, "is_failing", False)
    server = await loop.create_server(lambda: _Conversation(instance), host, port, reuse_address=True)
    async with server:
        await stop.wait()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("port", type=int)
    parser.add_argument("host", nargs="?", default="127.0.0.1")
    asked = parser.parse_args()
    asyncio.run(serve(asked.port, asked.host))


if __name__ == "__main__":
    main()

"""An instance with moods: `python -m tests.scenarios.moody PORT`; `/mood/LOSE/FAIL` sets these shares, as 0.01 and 0.6."""

from __future__ import annotations

import asyncio
import sys
from random import Random

from sidecar.demo import instance


class Moody(instance.Instance):
    """To so many questions after its health it says nothing, to so many 500."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self._lose = self._fail = 0.0
        self._rng = Random(name)

    def answer(self, head: bytes) -> bytes:
        path = head.split(b" ", 2)[1]
        if path.startswith(b"/mood/"):
            self._lose, self._fail = (float(share) for share in path.split(b"/")[2:])
        draw = self._rng.random()
        self.is_failing = draw < self._fail
        is_lost = path.startswith(b"/health") and draw >= 1.0 - self._lose
        return b"" if is_lost else super().answer(head)


async def serve(port: int) -> None:
    """Until it is killed."""
    moody = Moody(str(port))
    server = await asyncio.get_running_loop().create_server(lambda: instance._Conversation(moody), "127.0.0.1", port, reuse_address=True)
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(serve(int(sys.argv[1])))

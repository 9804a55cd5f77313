"""What `run` says of pools that are not as the configuration names them, while it runs."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench.daemon import Daemon, until

PAIR = "{a: '127.0.0.1:81', b: '127.0.0.1:82'}"


@pytest.mark.real
def test_run_says_once_which_pool_was_meant_and_forgets_it_when_it_is_corrected(tmp_path: Path) -> None:
    def config(pool: str) -> str:
        return f"balancers:\n  edge: {{plugin: memory, pools: {{shop: {PAIR}}}}}\nservices:\n  web: {{balancer: edge, pool: {pool}}}\n"

    daemon = Daemon(tmp_path, config("shpo"))
    daemon.start()
    try:
        until(lambda: "edge has no pool 'shpo' with servers" in daemon.log_text(), daemon.log_text)
        daemon.write(config("shop"))
        assert daemon.ask("/api/v1/reload", "POST")[0] == 200
        until(lambda: daemon.instances("web"), "the instances of the right pool")
    finally:
        daemon.end()

    lines = [line for line in daemon.log_text().splitlines() if "has no pool" in line]
    assert len(lines) == 1 and "warning" in lines[0] and "did you mean 'shop'?" in lines[0]

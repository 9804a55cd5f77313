"""The plugin's own keys."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from lbplugins.haproxy import HAProxy, HAProxyOptions
from lbplugins.values import Address


def test_one_socket_is_enough() -> None:
    options = HAProxyOptions.model_validate({"socket": "/run/haproxy/admin.sock"})

    assert (options.socket, options.timeout, options.agent, options.traffic) == (("/run/haproxy/admin.sock",), 2.0, None, None)
    assert HAProxy(options).lock_path() == "/run/haproxy/admin.sock.lb-sidecar.lock"
    assert HAProxy(options).traffic() is None


def test_all_keys() -> None:
    options = HAProxyOptions.model_validate(
        {"socket": ["/a", "/b"], "agent": "[::1]:7001", "master": "/m", "timeout": "500ms", "traffic": {"syslog": "unix:/run/l.sock"}}
    )

    assert (options.socket, options.agent, options.master, options.timeout) == (("/a", "/b"), Address("::1", 7001), "/m", 0.5)


@pytest.mark.parametrize(
    ("key", "value", "says"),
    [
        ("socket", "admin.sock", "absolute path"),
        ("socket", "/" + "x" * 107, "longer than the 107 bytes"),
        ("socket", "/a\nb", "absolute path"),
        ("socket", [], "at least 1"),
        ("socket", ["/a", "/a"], "named twice"),
        ("socket", 5, "tuple"),
        ("agent", "7001", "HOST:PORT"),
        ("agent", "host:99999", "HOST:PORT"),
        ("timeout", "2", "not a duration; write 500ms"),
        ("timeout", 0, "greater than 0"),
        ("timeout", "10m", "less than or equal to 60"),
        ("traffic", {"syslog": "514"}, "HOST:PORT"),
        ("traffic", {"syslog": "unix:log"}, "absolute path"),
        ("traffic", {"syslog": "127.0.0.1:514", "facility": 1}, "Extra inputs"),
        ("sockets", "/a", "Extra inputs"),
    ],
)
def test_bad_keys_say_what_to_do(key: str, value: object, says: str) -> None:
    with pytest.raises(ValidationError, match=says):
        HAProxyOptions.model_validate({"socket": "/run/haproxy/admin.sock", key: value})

"""HAProxy 2.4 and newer, over its runtime socket and agent-check."""

from lbplugins.haproxy.options import HAProxyOptions
from lbplugins.haproxy.plugin import HAProxy

__all__ = ["HAProxy", "HAProxyOptions"]

"""The ground under every edge: units, address checks, dialing, TLS contexts, and our own loop's lateness."""

"""Balancer plugins of lb-sidecar: the contract (`api`, `values`), the conformance kit (`testing`) and the plugins themselves."""

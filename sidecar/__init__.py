"""lb-sidecar: a health-check sidecar for load balancers."""

__version__ = "0.1.0"

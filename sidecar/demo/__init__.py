"""A small stage on one machine: real instances behind a real balancer. For `lb-sidecar demo`, tests and benchmarks."""

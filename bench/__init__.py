"""Measurements on real balancers: `python -m bench.removal` says how fast a dead instance leaves the rotation."""

"""The fault lab: every balancer's own ways and ours against the same faults, under the same load, in the same runs. See `run`."""

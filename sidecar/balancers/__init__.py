"""Driving balancer plugins: each on a thread and loop of its own (`host`), observed and told one transaction at a time (`driver`)."""

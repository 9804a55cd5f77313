"""Asking: the kinds of probes, what they expect, and the engine that asks on time. It measures; it never judges an instance."""

"""Ready-made dashboards, alerts and receivers' settings, made by `python -m dashboards.make`."""

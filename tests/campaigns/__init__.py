"""Long runs on the real processes, each a command: `python -m tests.campaigns.kills`. A cheap slice of each is a test."""

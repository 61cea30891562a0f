"""News of a run while it goes on: bar, events, evaluations."""

"""One rollout: running the program on an example, what it gave as text, demos, recorded traces."""

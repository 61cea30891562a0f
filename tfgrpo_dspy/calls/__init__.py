"""The calls that a run pays for once: rollouts, reflections, approvals; and what they share."""

"""Strategies: ways to learn more from the same calls; `base` says what one may decide."""

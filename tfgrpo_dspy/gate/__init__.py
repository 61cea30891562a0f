"""The gate: which experiences stay, which rollouts are given them, which library is returned."""

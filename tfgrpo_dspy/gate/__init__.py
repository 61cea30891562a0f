"""The gate: which experiences stay, which rollouts are given them, and which library is returned.

`protocol` says what a gate is asked, `bayesian` is the default gate, `model` its statistics;
`relevance` tells what an experience is about; `race` makes the final choice. No LM is called.
"""

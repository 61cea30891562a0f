"""Runs the program once: (program, example, LM, rollout id) -> Rollout, with its full trajectory.

Nothing that another thread uses is touched: every rollout works on its own copy of the program
and of its LMs. No exception of program or metric leaves this room; each becomes a `Failure`
(see `rollout`). Which rollouts are run, and when, is `run`'s business.
"""

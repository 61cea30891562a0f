"""What a run may spend, what it has spent, and when its calls may be made.

Every LM runs as a copy whose class, made at run time, takes each call from the run's one `Ledger`
first, makes the retries, and reports to a `Meter`. A program may swallow an Exception, so a refusal
is a BaseException. That class never reaches a program that is given back.
"""

from tfgrpo_dspy.budget.account import Account, Amount
from tfgrpo_dspy.budget.faults import is_too_long
from tfgrpo_dspy.budget.ledger import ABANDONED, Budget, Ledger, Reservation
from tfgrpo_dspy.budget.meter import Meter
from tfgrpo_dspy.budget.metered import CallWatcher, metered
from tfgrpo_dspy.budget.prices import price_of

__all__ = [
    "ABANDONED",
    "Account",
    "Amount",
    "Budget",
    "CallWatcher",
    "Ledger",
    "Meter",
    "Reservation",
    "is_too_long",
    "metered",
    "price_of",
]

"""What a run may spend, what it has spent, and when its calls may be made.

Every LM runs as a copy whose class, made at run time, takes each call from the run's one `Ledger`
first, makes the retries, and reports to a `Meter`. A program may swallow an Exception, so a refusal
is a BaseException. That class never reaches a program that is given back.
"""

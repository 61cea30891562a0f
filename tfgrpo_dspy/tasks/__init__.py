"""The places where tasks of a run are done: threads, other processes, the loop of the caller."""

"""The run store: content-addressed text records in a folder, that outlive any crash.

A record is a JSON object under a key that holds everything that it depends on (`store.identity`);
it is written once and never changed: of two writers the first wins, and the second is told. So
resuming and replaying a run is starting it again. Which records a run reads and writes is
`run`'s business.
"""

from tfgrpo_dspy.store.identity import (
    Unseen,
    digest,
    instance_identity,
    object_identity,
    without_addresses,
)
from tfgrpo_dspy.store.records import Record, Store, reading

__all__ = [
    "Record",
    "Store",
    "Unseen",
    "digest",
    "instance_identity",
    "object_identity",
    "reading",
    "without_addresses",
]

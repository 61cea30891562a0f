"""The run store: text records in a folder, that outlive any crash.

A record is a JSON object under a key made of everything that it depends on (`identity`). It
is written once and never changed, so resuming and replaying a run is starting it again.
"""

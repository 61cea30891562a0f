"""The run store: text records in a folder that outlive any crash."""

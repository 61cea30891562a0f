"""Experiences and their library: values, operations, and the text baked into a program."""

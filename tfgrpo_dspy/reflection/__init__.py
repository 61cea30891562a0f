"""Reflection: what the reflection LM is asked, in which words, and what its answers become."""

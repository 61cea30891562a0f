"""Joins to other packages, each in a file that alone imports that package."""

"""Operators that move elements by index."""

"""Operators that only change the shape."""

"""Elementwise maps."""

"""Constants and values made from shapes."""

"""Heads that are the minimum of a smooth loss: found fast, and to the end."""

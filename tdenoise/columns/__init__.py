"""Atomic columns: where they are, how strong in each frame, and when they change. May import noise and evaluation."""

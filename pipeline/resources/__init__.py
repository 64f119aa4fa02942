"""Memory, cores and disk: what is there, and what a step will need; may import store and what is below it."""

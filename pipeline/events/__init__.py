"""Find the atomic columns of a movie and list when they change; may import inputs and what is below it."""

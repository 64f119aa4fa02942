"""Which atomic columns a movie holds and when they change. May import inputs and below, never another step."""

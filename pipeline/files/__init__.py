"""Small files on a shared disk: whole, one's own, and with failures that are named; may import errors only."""

"""The networks, what they are shown, and their files; may import noise and files."""

"""Take a movie away as a file that other programs open; may import pictures and what is below it."""

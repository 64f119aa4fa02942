"""Train a network on noisy movies, or on simulated ones; may import every other room."""

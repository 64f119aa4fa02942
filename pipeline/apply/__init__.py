"""Denoise a movie with a model, block by block; may import inputs, workers, and what is below them."""

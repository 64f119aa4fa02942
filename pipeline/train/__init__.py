"""Train a model on movie stores; may import inputs, resources, and what is below them."""

"""Turn a raw movie into a movie store; may import readers, resources, and what is below them."""

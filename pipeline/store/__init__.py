"""The movie store and the denoised store, and their shards on the disk; may import files and errors."""

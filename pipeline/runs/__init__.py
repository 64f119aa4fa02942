"""Who works on an output, and what of it is done; may import settings, files and errors."""

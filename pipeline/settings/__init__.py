"""Settings of every command, and how text becomes a setting; may import files and errors."""

"""Self-supervised denoising of electron microscopy movies: functions on arrays, no files, no clusters."""

__version__ = "0.1.0"

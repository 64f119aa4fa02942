"""Denoise frames with a trained network, and hold the result against the counts; may import network and noise."""

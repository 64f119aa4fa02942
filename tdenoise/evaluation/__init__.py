"""Measure how good a denoised movie is, with and without a truth; imports no other room."""

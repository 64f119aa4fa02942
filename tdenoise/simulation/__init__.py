"""Simulated movies whose truth is known; imports no other room."""

"""What is known of raw frames: their noise, drift, brightness and bad pixels; imports no other room."""

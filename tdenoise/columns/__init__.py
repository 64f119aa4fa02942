"""Find atomic columns, how strong they are in each frame, and when they change; imports no other room."""

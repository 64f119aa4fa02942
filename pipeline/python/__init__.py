"""What a program or a notebook calls: functions for the steps, arrays instead of files; may import every other room."""

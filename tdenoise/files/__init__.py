"""Files that are whole at any moment, and JSON that anybody may have written; imports no other room."""

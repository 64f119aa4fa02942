"""Pictures of movies, frame by frame: panels, contrast, sheets, videos; may import inputs and what is below it."""

"""Keep cards of movies, models and results, verify them, describe them for others; may import resources and what is below it."""

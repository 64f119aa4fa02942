"""Keep cards of movies, models and results, verify and describe them; may import resources and what is below it."""

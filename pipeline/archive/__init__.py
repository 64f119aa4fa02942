"""Keep cards of movies, models and results, and verify stores; may import resources and what is below it."""

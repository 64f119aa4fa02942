"""What the steps read: a movie store, a model, and whether the two fit; may import store and what is below it."""

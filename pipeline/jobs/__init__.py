"""Run commands as batch jobs, and look after them; may import workers and what is below it."""

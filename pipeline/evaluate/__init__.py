"""Say how good a denoised movie is, and write the report; may import inputs and what is below it."""

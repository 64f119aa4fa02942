"""Whatever calls several steps: run, resume, repair, many movies; may import every step."""

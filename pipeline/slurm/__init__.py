"""Talk to batch systems: profiles of sites, job scripts, queues; may import settings and what is below it."""

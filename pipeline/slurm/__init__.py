"""Talk to batch systems: profiles of sites, job scripts, queues; may import errors only."""

"""Local page: a server on this machine alone, and the looks that its pages share."""

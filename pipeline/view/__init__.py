"""View: a page in the browser of this machine to look at movies of any size."""

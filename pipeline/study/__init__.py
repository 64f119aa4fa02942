"""Study: how the number of frames and their size decide what a movie teaches; imports steps and workflow."""

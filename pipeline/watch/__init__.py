"""Watch: a page that shows recordings while the microscope writes them, and a queue of runs for those you accept."""

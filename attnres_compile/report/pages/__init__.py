"""HTML pages and plots of a report and of a sweep over the number of blocks."""

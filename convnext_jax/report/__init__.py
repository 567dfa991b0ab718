"""A run as one page of HTML to look at."""

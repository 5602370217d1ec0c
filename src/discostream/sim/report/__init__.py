"""What an evaluation found, as a page, as tables, and as data."""

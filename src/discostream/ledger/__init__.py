"""What was spent and what came of it, kept in SQLite."""

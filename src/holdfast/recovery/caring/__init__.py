"""Health: what is observed, what the checks find, and what is done about it."""

"""One training, from the first call of a `Checkpointer` to its end."""

"""The checkpoints of a launch: when one is due, what it is asked for, who makes it, what follows from it."""

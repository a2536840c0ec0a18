"""Where the loop stands: its steps, what is logged at them, and the time that they take."""

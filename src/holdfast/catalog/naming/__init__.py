"""How people name checkpoints: references, tags, and runs that begin at somebody else's record."""

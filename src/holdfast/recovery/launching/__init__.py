"""How a launch begins: the run that is meant, the checkpoint to go on from, what earlier launches did not survive."""

"""The ranks of one training agree, and none waits for another without a deadline."""

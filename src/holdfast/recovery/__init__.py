"""Resuming: what the launcher says, which checkpoint is chosen, and how a run ends early."""

"""Adapters for checkpointing interfaces of others: one module each, imported only by who uses it."""

"""Runs, records and what is known about them: everything small that is stored, and the rules of deleting it."""

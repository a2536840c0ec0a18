"""Checking what is stored, from small objects to the last byte of a pack."""

"""Segments in packs: written once, in parallel and aligned; read back only if every byte is what was written."""

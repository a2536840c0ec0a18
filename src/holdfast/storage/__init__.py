"""Bytes by name: the storage seam, the filesystem and memory behind it, and wrappers that trace or fail."""

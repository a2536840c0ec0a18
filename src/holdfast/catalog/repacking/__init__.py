"""Packs are made anew: without what nobody needs any more, or with another codec."""

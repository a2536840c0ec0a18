"""What has happened to a run: its journal, and the timeline and the accounts that are told from it."""

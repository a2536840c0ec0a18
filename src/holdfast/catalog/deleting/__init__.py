"""What may be deleted and what must not be: retention within a run, sweeps of a store."""

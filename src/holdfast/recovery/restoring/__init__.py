"""From a record to live objects, and to the place in the data."""

"""From a configuration file, with our names or those of other tools, to the arguments of a `Checkpointer`."""

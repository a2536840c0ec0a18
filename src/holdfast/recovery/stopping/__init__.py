"""How a launch ends: completed, pre-empted or failed, with the checkpoint that belongs to it."""

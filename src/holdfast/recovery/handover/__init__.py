"""From the training loop to whoever saves: staging memory, what is on its way, and what comes back."""

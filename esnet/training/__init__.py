"""Training of ESNet: recipes, losses, and resumable runs."""

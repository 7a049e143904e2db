"""Training of ESNet: recipes, random views, losses, and runs that can be stopped and resumed."""

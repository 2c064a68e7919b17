"""A run from a recipe: read, load, train, prove."""

"""Small models with random weights, by architecture. Imported by tests only."""

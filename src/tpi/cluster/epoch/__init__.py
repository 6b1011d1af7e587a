"""The plan, and one rank's place in it."""

"""One file for each architecture; they do not import one another."""

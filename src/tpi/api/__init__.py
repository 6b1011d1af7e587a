"""HTTP: the engine, in the words of other people's clients."""

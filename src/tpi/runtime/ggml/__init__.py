"""Everything that touches ggml's memory: declarations, graphs, computing. Raw pointers stay in here."""

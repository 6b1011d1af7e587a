"""The model's bytes on disk and in memory: layout of pieces, slicing, shard files, the window."""

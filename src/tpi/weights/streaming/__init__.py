"""The window: pieces pinned in memory, those that pass through it from the disk, and those that come on demand."""

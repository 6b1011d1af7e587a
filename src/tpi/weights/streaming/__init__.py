"""The window: pieces pinned in memory, and those that pass through it from the disk."""

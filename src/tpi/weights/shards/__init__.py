"""Shard files: format, writing, checking, the folder that holds them, who uses them, rearranged copies."""

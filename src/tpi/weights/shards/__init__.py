"""Shard files: format, writing, checking, the folder that holds them, rearranged copies."""

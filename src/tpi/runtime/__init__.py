"""Executes blocks: graphs, KV cache, scratch memory. What it needs of others stands in ``protocols``."""

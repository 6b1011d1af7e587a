"""Decides from facts about devices: who holds how much, and what memory is used for. Pure arithmetic."""

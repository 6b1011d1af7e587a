"""Slices of the model and shards on their way to the devices."""

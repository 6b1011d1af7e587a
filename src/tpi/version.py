"""The versions: of the distribution, and of what two devices say to each other."""

VERSION = "0.1.0"

PROTOCOL_VERSION = 11
"""Rises whenever a message, a frame or the shard format changes; devices of different numbers refuse each other."""

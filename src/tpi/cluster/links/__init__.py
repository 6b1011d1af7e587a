"""Connections between paired devices: control links with messages, data links with frames."""

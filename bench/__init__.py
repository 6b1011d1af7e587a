"""Measures what the README claims: models of true shape, emulated devices, one program per number. Not installed."""

"""Algorithms that satisfy ``tpi.runtime.protocols.Allreduce``, one module each, and the arithmetic that they share."""

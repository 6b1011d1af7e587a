"""Fakes and conformance suites for the seams of the product; imported by tests, never by the product."""

"""Scripts for a checkout of the project: standard library only, no part of the package."""

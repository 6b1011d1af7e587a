"""Data links of an epoch, and what travels on them."""

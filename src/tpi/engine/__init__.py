"""Generation on the master: tokens in, text out. Workers import nothing from here."""

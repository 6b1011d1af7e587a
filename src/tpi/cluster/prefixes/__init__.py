"""What is kept of the beginning of a text, on the disk of every rank."""

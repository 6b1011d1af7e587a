"""What all ranks did when, on one clock, in a file."""

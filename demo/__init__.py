"""The demo model: its text generator, tokenizer, training and export. Not part of the installed package."""

"""What a model is: its dimensions, its blocks, how they are cut. Data only, no input or output."""

"""The API that Anthropic's clients speak."""

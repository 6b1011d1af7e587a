"""How families of models write thinking and calls of tools: reading it as it comes, and the grammar of their calls."""

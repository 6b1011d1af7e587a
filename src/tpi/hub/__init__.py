"""Folders as model hubs have them (safetensors, config.json, a tokenizer), read as the GGUF files they would make."""

"""The bytes of GGUF files: metadata, tensor directory, data types. Knows nothing of models."""

"""One file per family of models: which GGUF architecture a folder of it is, and of what each of its tensors is made."""

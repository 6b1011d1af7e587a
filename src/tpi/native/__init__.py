"""The ggml and llama.cpp shared libraries: where they are, whether they are the pinned version, loading them."""

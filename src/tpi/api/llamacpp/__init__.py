"""The API of llama.cpp's own server."""

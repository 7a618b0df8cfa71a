"""Layers that several architectures share, each in plain `keras.ops` so that it runs on every backend."""

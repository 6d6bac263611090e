"""Environments on a node: who may have which generation, and its closure in the store, rooted."""

"""Rewrites of exported graphs, one a file."""

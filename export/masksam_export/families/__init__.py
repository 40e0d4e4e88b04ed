"""Families of networks, one folder each: everything that knows one model's shape."""

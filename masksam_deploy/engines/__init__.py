"""Engines: graphs of a bundle made ready for one runtime and one kind of machine."""

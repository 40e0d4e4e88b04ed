"""How well two results of one scan agree: what evaluation, comparison, benchmarks and the engines' gate count with.

Nothing here runs a network, and nothing here is specific to one of its callers.
"""

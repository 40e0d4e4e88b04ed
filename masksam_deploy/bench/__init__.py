"""Measuring a bundle: every backend held to the float32 graphs first, then timed side by side in one process.

    result = run_bench(bundle, contenders, scan, Settings())

Times are seconds of wall clock. What disagrees with the float32 graphs has no times.
"""

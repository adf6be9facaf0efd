"""Benchmarks: how long a token takes and how much memory it needs, against what a user would do without sinktrain."""

"""sinktrain: train language models that stream forever with one learnable sink token, and prove that they do.

Importing this package imports nothing heavy; each room is imported when it is used.
"""

__version__ = "0.1.0"

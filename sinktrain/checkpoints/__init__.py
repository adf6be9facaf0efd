"""Checkpoints on disk: written so that a kill at any moment leaves the last good one, read without Lightning or ranks.

A checkpoint is a folder `step-N`. Every rank writes the parts of weights and optimizer that it holds as plain
safetensors (`rank-R.safetensors`), and where they belong (`rank-R.json`). The rest is JSON, and nothing is pickled. The
manifest, with the size and the checksum of every file, is written last, and then the folder gets its name.
"""

"""Endless generation: a prompt that goes on and on, and a chat of many turns, over one cache that is never reset."""

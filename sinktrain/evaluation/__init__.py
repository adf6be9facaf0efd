"""Questions put to a model: the grid of caches, the verdict, the attention on its sink."""

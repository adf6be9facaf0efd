"""One page that shows what was measured: the verdict, the caches, the stream, the training, the attention."""

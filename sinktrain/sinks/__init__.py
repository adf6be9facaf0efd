"""What a sink is: its settings, its token in the tokenizer, its row in the embedding."""

from sinktrain.sinks.config import SinkConfig

__all__ = ["SinkConfig"]

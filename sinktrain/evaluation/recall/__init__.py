"""What a model with a streaming cache still knows: StreamEval, recall by distance, and questions in one long stream."""

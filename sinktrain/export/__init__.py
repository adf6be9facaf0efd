"""From a checkpoint to a plain Hugging Face folder that needs no code of ours."""

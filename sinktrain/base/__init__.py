"""What every room stands on: errors with a remedy, words for the terminal, folders that are whole or absent."""

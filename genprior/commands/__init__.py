"""What the shell does: words in, words out."""

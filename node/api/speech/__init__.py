"""What an answer's text says: words, thoughts and calls of tools, as each family of models writes them."""

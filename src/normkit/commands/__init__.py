"""Commands that change a model whose weights lie in a file, and write what comes out to a file."""

"""What merges ask of data, gathered in one pass: Fisher information, Gram matrices, Kronecker factors; and their files."""

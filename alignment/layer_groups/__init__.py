"""Networks cut into consecutive groups of layers, each of which runs by itself."""

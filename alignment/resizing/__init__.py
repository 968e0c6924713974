"""Networks at other widths: the same function over tensors whose nodes have grown or shrunk."""

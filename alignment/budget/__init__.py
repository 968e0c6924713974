"""What a network of given widths costs, and which units to keep separate when it may cost so much."""

"""What is done to differences from a base: selection by magnitude, elections of signs, singular vectors, masks."""

"""What the axes of arrays are made of, as terms, and the algebra that unifies them: all that the rules of primitives need."""

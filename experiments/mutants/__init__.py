"""Mutation testing: small faults put into the packages one by one, and whether a test notices."""

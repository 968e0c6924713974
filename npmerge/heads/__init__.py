"""Networks that share a part and keep heads or stems of their own."""

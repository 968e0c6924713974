"""What was measured, and the programs that measured it. Runs from the checkout; nothing here is in the wheel."""

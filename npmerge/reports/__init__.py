"""What people are shown: tables, figures, numbers in words, and folders that are written whole or not at all."""

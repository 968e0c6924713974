"""Networks that people who never met have published, merged in every way there is here."""

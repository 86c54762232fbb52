"""Features -> numbers."""

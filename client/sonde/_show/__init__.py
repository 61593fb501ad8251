"""Primitives of pictures, tables and texts. They know nothing of what a result is."""

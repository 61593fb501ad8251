"""Primitives for figures, HTML and text. They know nothing about results."""

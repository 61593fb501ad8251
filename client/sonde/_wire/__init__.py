"""Conversion between the contract's messages and what callers write and get."""

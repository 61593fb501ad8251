"""Shares one model, which one thread owns, between the questions of many callers."""

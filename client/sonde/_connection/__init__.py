"""Connections to servers: addresses, encryption, retries, deadlines and progress."""

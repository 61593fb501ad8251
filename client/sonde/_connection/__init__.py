"""The way to the servers: addresses, encryption, retries, deadlines, progress."""

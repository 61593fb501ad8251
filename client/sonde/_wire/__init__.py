"""The contract's messages: written from what a person asks, and read into answers."""

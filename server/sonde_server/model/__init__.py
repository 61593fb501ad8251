"""The hosted model: loading it, its vocabulary, and the anatomy that locates each component."""

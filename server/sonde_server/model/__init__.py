"""The hosted model: loading it, its vocabulary, and the anatomy that says where each component lies."""

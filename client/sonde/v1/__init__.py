"""Generated from proto/sonde/v1; see proto/generate.py."""

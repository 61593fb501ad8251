"""The parts of attribution patching."""

"""The parts of a reduction."""

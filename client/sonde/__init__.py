"""The client of Sonde."""

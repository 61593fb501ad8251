"""The server of Sonde."""

"""The methods of a trace, and interventions: one file for each, from the request to the figure of the result."""

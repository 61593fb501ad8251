"""The methods of a trace and the interventions: one file each, from the request to the picture of the result."""

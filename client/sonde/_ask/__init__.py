"""What callers write: sites, edits, plans, prompts and names."""

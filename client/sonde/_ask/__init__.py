"""What a person writes: places, edits, plans, prompts."""

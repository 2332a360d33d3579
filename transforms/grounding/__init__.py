"""What decides which expert looks at what, and how far what it found may be believed."""

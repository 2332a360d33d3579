"""What is measured on regions, what may be said of it, and how facts tell it."""

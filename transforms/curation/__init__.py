"""Curation: duplicates, contamination, quality and splits, as pure functions over pictures, hashes and ids."""

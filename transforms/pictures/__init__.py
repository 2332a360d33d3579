"""Pictures from untrusted bytes: opened safely, freed of metadata, hashed, encoded."""

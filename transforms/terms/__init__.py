"""What several words for one thing are called here: terms of anatomy and findings with their ids in ontologies."""

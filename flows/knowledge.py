"""Knowledge bases of a recipe: built when they are missing or their corpora changed."""

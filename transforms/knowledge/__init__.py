"""Knowledge bases: passages of corpora, their embeddings, and the search that finds them."""

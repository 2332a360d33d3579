"""Questions and answers over the facts of a picture: what may be asked, of which wrong answers, in which form."""

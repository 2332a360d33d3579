"""Classifiers: what kind of picture an image is, and the words for the kinds (`classes.py`)."""

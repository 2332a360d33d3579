"""Figures of several panels: what a caption says of each, which sentences cite it, and which panel is which."""

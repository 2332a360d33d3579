"""Models that users plug in by a folder: what the expert plug-ins that run them share.

`folders` says what a folder is and whether it may be loaded, `wanted` what a recipe asks of it, `networks` loads and
runs it. The plug-ins stand in `transforms/experts`; this room knows nothing of them.
"""

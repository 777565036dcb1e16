"""What ``benchmarks/quality.py`` is made of: the data, how each side is trained, and how features are scored."""

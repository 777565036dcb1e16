"""What ``data_path.py`` is made of: one file per group of readers; nothing here is installed with the package."""

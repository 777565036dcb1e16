"""Every figure. matplotlib is imported at the point of use."""

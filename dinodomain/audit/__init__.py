"""The audit: what shaped a backbone, where it fails, what its features leak, what it enables, answered with evidence or not at all."""

"""The first-run scenarios and the data they run on."""

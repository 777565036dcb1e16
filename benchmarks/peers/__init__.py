"""Ways to make multi-crop views, ours and those of other libraries, one file each; ``common`` says what all have to make."""

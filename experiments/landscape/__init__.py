"""What merging does inside: lines and planes of the loss, images that units answer to, and similarity layer by layer."""

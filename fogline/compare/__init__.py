"""What `fogline compare` does: the same frames through image codecs, at several qualities of each."""

"""Images, their split and preparation, and the cache of their tokens."""

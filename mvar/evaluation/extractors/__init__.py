"""Feature extractors, one file each: what images are judged with."""

"""What a run is made of, one file a stage: each does what is missing and may be called again after any kill."""

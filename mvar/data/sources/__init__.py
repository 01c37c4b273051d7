"""Where images come from: one file a data source, found by its name."""

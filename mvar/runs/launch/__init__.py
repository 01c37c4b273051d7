"""What is looked at before anything is launched: sizes, data sets, files that runs will read."""

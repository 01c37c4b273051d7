"""What samples and models are worth: image metrics, likelihood, near-copies, and the floors to read them against."""

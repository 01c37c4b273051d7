"""Files of weights, other people's and ours: read without running any code in them, checked, written, started from."""

"""WHAT to run: sweeps of configs, the pipeline of one run, the store of results, and the runner of this machine."""

"""The engine: the store of results, the stages and the pipeline of a run, plans, and the runners that make runs."""

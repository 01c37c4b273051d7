"""One import: what `mvar.load`, `mvar.train`, `mvar.evaluate`, `mvar.runs` and `mvar.Model` stand for.

The command line and the notebooks take this way too. Examples in docstrings are run by the tests.
"""

"""The toolkit that reads results: records, statistics and verdicts, tables, figures, the report and its page."""

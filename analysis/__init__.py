"""What came out: attention statistics, tables, figures and the report, with the paper's printed numbers beside ours."""

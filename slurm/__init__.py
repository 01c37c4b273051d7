"""Where runs are made: cluster profiles, submission, the job, what the queue says."""

"""The launcher: runs on SLURM, submitted through submitit, followed, cancelled and retried."""

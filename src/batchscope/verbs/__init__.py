"""What can be asked? One file a verb; `bs.*` and the command line both call these and nothing else."""

"""Minutes on a GPU: one command that runs what was never run, stage by stage, and brings two files back."""

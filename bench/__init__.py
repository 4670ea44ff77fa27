"""What the kernels cost: counted and compiled offline without a GPU, measured where there is one."""

"""What the compiler made of the kernels, and what it has to cost at the least; none of it needs a GPU."""

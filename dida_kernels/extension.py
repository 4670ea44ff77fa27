"""The C++/CUDA extension and the backends "cpp" and "cuda" that it brings."""

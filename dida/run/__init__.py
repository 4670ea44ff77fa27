"""What a run needs beside its steps: where it starts from, its folder, and what it says and writes down."""

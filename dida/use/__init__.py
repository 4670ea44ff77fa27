"""What was trained, in use: found wherever it lies, scored, asked, written in other forms, handed on."""

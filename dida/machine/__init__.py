"""What a machine gives: files that are whole, a device, signals, and several processes that are one run."""

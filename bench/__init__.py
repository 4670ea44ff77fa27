"""What operations and steps cost, what the compiler made of them, what trainings come to: measured, counted, drawn."""

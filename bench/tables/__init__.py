"""The tables of the paper: which trainings they need, what came out, and how sure that is."""

"""What training a student and training a teacher have in common: run folder, checkpoint, log, rates, processes."""

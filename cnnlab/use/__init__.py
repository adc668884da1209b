"""What one does with a trained run."""

"""What a run may spend, what it has spent, and when its calls may be made."""

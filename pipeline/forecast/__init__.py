"""What a study would take, before it runs: work, hours, bytes, disk."""

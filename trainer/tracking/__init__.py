"""Where a run's numbers and pictures go while it runs."""

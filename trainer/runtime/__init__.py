"""What every job needs of its process: checkpoints, run folder, ranks, heartbeat, seeds."""

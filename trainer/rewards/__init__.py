"""Scores for a job's samples: asked for through the queue, weighted, summed."""

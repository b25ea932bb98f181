"""Celery on Redis: tasks, the blobs beside them, replies, and connections that last."""

"""Celery workers: carry batches to the jury, launch and supervise training jobs. No torch."""

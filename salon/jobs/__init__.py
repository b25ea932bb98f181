"""Jobs: their records, states and events, and the right to run one."""

from salon.jobs.lease import Lease, LeaseLost, acquire
from salon.jobs.questions import Question
from salon.jobs.record import Event, Job, JobNotFound, JobState, JobUnreadable
from salon.jobs.store import JobStore

__all__ = [
    "Event",
    "Job",
    "JobNotFound",
    "JobState",
    "JobStore",
    "JobUnreadable",
    "Lease",
    "LeaseLost",
    "Question",
    "acquire",
]

"""The commands that let a job go on: resume what is over, answer what one asks."""

import json
from typing import Annotated, Any

import typer
from rich.table import Table

from salon.cli.jobs import JobName, open_store
from salon.cli.records import find
from salon.cli.terminal import console, print_table
from salon.errors import InvalidRequest
from salon.jobs.questions import Question
from salon.jobs.record import Job, JobState
from salon.jobs.store import JobStore
from salon.queue.broker import create_app, send_launch
from salon.settings import load_settings


def resume(
    job: JobName,
    iterations: Annotated[
        int | None, typer.Option(min=1, help="So many more than its spec says.")
    ] = None,
) -> None:
    """Let a job that is over go on from its last checkpoint."""
    settings = load_settings()
    store = open_store(settings)
    record = find(store, job)
    _refuse_stopped(store, record)
    resumed = store.resume(record.id, iterations or 0)
    send_launch(create_app(settings), record.id)
    more = f", for {resumed.spec['iterations']} iterations in all" if iterations else ""
    console.print(f"{record.id} is queued again{more}", soft_wrap=True)


def _refuse_stopped(store: JobStore, job: Job) -> None:
    """Refuse a job that one of its rules has ended, and would again."""
    last = store.latest(job.id, "iteration")
    if job.state is not JobState.SUCCEEDED or last is None:
        return
    done, total = last.data.get("iteration"), job.spec.get("iterations")
    if isinstance(done, int) and isinstance(total, int) and done < total:
        raise InvalidRequest(
            f"{job.id} was stopped after iteration {done} of {total} by a rule of its stop_when, "
            "which would stop it again: submit it anew without that rule"
        )


def answer(
    job: JobName,
    answers: Annotated[
        list[str] | None,
        typer.Argument(help="One for each item of its question; without any that is shown."),
    ] = None,
) -> None:
    """Show what a job asks, or answer it."""
    settings = load_settings()
    store = open_store(settings)
    record = find(store, job)
    question = store.question(record.id)
    if question is None:
        raise InvalidRequest(f"{record.id} is {record.state.value} and asks nothing")
    if not answers:
        _print_question(question)
        return
    values = [text if question.choices else _value(text) for text in answers]
    if store.answer(record.id, question.id, values) is JobState.QUEUED:
        send_launch(create_app(settings), record.id)
    console.print(f"question {question.id} of {record.id} is answered", soft_wrap=True)


def _value(text: str) -> Any:
    """As JSON where it is some, else as it is."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text


def _print_question(question: Question) -> None:
    console.print(f"{question.text}  (question {question.id})", soft_wrap=True)
    table = Table("item", box=None)
    table.add_column("asked of", overflow="fold")
    for number, item in enumerate(question.items, start=1):
        table.add_row(str(number), json.dumps(item, ensure_ascii=False))
    print_table(table)
    if question.choices:
        console.print(f"choices: {', '.join(question.choices)}", soft_wrap=True)

"""The tables of options are rendered from the configs themselves."""

from typing import Literal

import pytest
from pydantic import BaseModel, Field

from trainer.options import TABLES, render


class Section(BaseModel):
    size: int = Field(description="How large.")
    way: Literal["a", "b"] = Field("a", description="Which way.")
    limit: float | None = Field(None, description="At most.")
    names: tuple[str, ...] = Field(("x", "y"), description="Which <x>, a|b.")
    rate: float = Field(1e-4, description="How fast.")
    quick: bool = Field(False, description="Whether.")
    places: dict[str, str] = Field({}, description="Where.")
    word: str = Field("", description="Secret.")


def test_a_table_has_a_row_for_each_field(monkeypatch):
    monkeypatch.setitem(TABLES, "section", Section.model_fields)
    page = "before\n<!-- options section -->\nold\n<!-- end -->\nafter\n"
    assert render(page) == (
        "before\n<!-- options section -->\n"
        "| key | default | |\n|---|---|---|\n"
        "| `size` | **required** | How large. |\n"
        "| `way` | `a` | `a` or `b`. Which way. |\n"
        "| `limit` | none | At most. |\n"
        "| `names` | `x`, `y` | Which &lt;x>, a\\|b. |\n"
        "| `rate` | `0.0001` | How fast. |\n"
        "| `quick` | no | Whether. |\n"
        "| `places` | none | Where. |\n"
        "| `word` | none | Secret. |\n"
        "<!-- end -->\nafter\n"
    )
    assert render(render(page)) == render(page)


def test_a_mark_that_names_no_table_is_refused():
    with pytest.raises(ValueError, match="no table of options 'dppo'; there are job, "):
        render("<!-- options dppo -->\n<!-- end -->\n")


@pytest.mark.parametrize("table", sorted(TABLES))
def test_every_option_says_what_it_is(table):
    assert TABLES[table]
    assert not [name for name, field in TABLES[table].items() if not field.description]
